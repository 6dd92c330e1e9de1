"""A basketball drive: a hidden Markov model nobody here wrote, its states latent or summed out.

Data, model and the posterior's moments (Stan's draws) are facts of posteriordb's `hmm_drive_0`
(Magnusson et al. 2024; BSD-3-Clause), in ``reference_cases.json``: two positive numbers a step, of
exponential distributions whose rates the state chooses.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch.distributions import (
    Categorical,
    Dirichlet,
    Distribution,
    Exponential,
    Normal,
    constraints,
)

from skavi import FactorizedVI
from skavi.families import Chain, DiagonalNormal
from skavi.models import MarkovModel
from skavi.noise import QuasiMonteCarlo
from skavi.objective import bind

DRIVE = json.loads((Path(__file__).parent / "reference_cases.json").read_text())["drive"]
X = np.array(DRIVE["rows"])


class OrderedPair(Distribution):
    """A rate and what the other one has more: N(0, 1) and N(3, 1) densities of the two rates."""

    support = constraints.independent(constraints.positive, 1)

    def __init__(self):
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    def sample(self, sample_shape=()):
        lower, upper = torch.randn(*sample_shape, 2).abs().unbind(-1)
        return torch.stack([lower, (3 + upper - lower).abs()], -1)

    def log_prob(self, value):
        lower, more = value.unbind(-1)
        return Normal(0.0, 1.0).log_prob(lower) + Normal(3.0, 1.0).log_prob(lower + more)


class Drive(MarkovModel):
    """hmm_drive_0, but for the weights of the first states: 1/2 each here, and 1 there."""

    n_latents = 1

    def global_prior(self, n_features):
        alpha = torch.tensor([[4.0, 2.0], [2.0, 4.0]])
        return {"moves": Dirichlet(alpha), "phi": OrderedPair(), "lambda": OrderedPair()}

    def initial_prior(self, theta):
        return Categorical(torch.full((2,), 0.5))

    def transition(self, z_previous, theta):
        return Categorical(theta["moves"][z_previous[:, 0].long()])

    def likelihood(self, z, theta):
        rates = torch.stack([theta["phi"], theta["lambda"]]).cumsum(-1)  # (columns, states)
        return Exponential(rates.mT[z[:, 0].long()])


def q_of_theta(space):
    """Return raw parameters of a q(theta) at the posterior's means, with sds of a tenth."""
    mean = {name: m for name, (m, _) in DRIVE["globals"].items()}

    def pair(name):
        return [mean[f"{name}[1]"], mean[f"{name}[2]"] - mean[f"{name}[1]"]]

    moves = [[mean[f"theta{i}[1]"], mean[f"theta{i}[2]"]] for i in (1, 2)]
    theta = {"moves": moves, "phi": pair("phi"), "lambda": pair("lambda")}
    u = space.unconstrain({name: torch.tensor(v).double() for name, v in theta.items()})
    return torch.cat([u, torch.full_like(u, np.log(0.1))])


def by_recursions(log_first, log_moves, log_densities, log_q):
    """Return log p(x), and the divergence of q(s), given by its conditionals, from p(s | x)."""
    n, later = len(log_densities), np.zeros(2)
    divergences = np.zeros(2)  # of all later rows, given the state
    for row in range(n - 1, -1, -1):
        start = log_first[np.newaxis] if row == 0 else log_moves
        joint = start + log_densities[row] + later
        total = logsumexp(joint, axis=1)
        exact, q = joint - total[:, np.newaxis], log_q[row][: len(joint)]
        divergences = (np.exp(q) * (q - exact + divergences)).sum(1)
        later = total
    return later[0], divergences[0]


@pytest.mark.parametrize("best", [True, False])
def test_what_is_lost_is_the_divergence_of_the_states(best):
    """ELBO + E_q(theta) KL(q(s) || p(s | x, theta)) = the ELBO with s summed out: to 1e-6 nats.

    At one q(theta), under the same nodes, for the best q(s) and for another one.
    """
    rows = torch.as_tensor(X)
    objective = bind(Drive(), Chain(), DiagonalNormal(), rows)
    raw_globals, space = q_of_theta(objective.space), objective.space
    nodes = QuasiMonteCarlo(16).nodes(space.size, 0, 1, torch.Generator().manual_seed(0))
    _, factors, terms = objective.optimum(raw_globals, rows, nodes)
    if not best:
        raw = factors.raw()
        raw[1:] += 0.1 * torch.sin(torch.arange(2.0 * len(X) - 2).double()).reshape(-1, 2)
        factors = objective.local_factors(raw)
        terms = objective.row_terms(raw, raw_globals, rows, nodes)
    summed = divergence = 0.0
    for u, weight in zip(
        objective.global_factor(raw_globals).draw(nodes.globals_), nodes.weights, strict=True
    ):
        theta = space.constrain(u)
        rates = [Exponential(torch.cumsum(theta[name], 0)) for name in ("phi", "lambda")]
        densities = sum(each.log_prob(rows[:, [i]]) for i, each in enumerate(rates))
        first, moves = np.log([0.5, 0.5]), theta["moves"].log().numpy()
        log_z, lost = by_recursions(
            first, moves, densities.numpy(), factors.log_conditionals.numpy()
        )
        summed, divergence = summed + float(weight) * log_z, divergence + float(weight) * lost
    assert divergence > (0.01 if best else 0.1)
    assert abs(float(terms.sum()) + divergence - summed) < 1e-6


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_every_seed_finds_one_optimum(seed):
    """Beside the summed-out model's optimum of the reference: lower by what latent states lose."""
    vi = FactorizedVI(Drive(), random_state=seed).fit(X)
    assert vi.converged_
    assert abs(vi.elbo_ - -1903.9628) < 1e-3
    assert 0.05 < DRIVE["elbo"] - (vi.elbo_ + np.log(2)) < 0.3
