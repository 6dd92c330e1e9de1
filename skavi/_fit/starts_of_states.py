"""A start of theta where latents take finitely many values: the states are clusters of rows.

Points at the prior's scale may all lie where one state does all the work. Given each row's state
the ELBO has no such optima as a rule, so theta is maximised there first.
"""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from skavi._data.missing_cells import Cells
from skavi._data.rows import Rows
from skavi._numerics.clusters import k_means
from skavi.families import CategoricalFactors

#: Which cluster is which state is tried in all orders up to three states, and in as many of more.
_MOST_ORDERS = 6
#: Draws of clusters, of which the tightest are kept. Not measured: order of magnitude.
_DRAWS = 5
#: Probability that a row is in its cluster's state: others are not ruled out.
_SURE = 0.8
#: Iterations: a climb follows, so that few will do. Not measured: order of magnitude.
_MAX_ITER = 60


def start_from_clusters(objective: Any, rows: Rows, centre: Tensor) -> list[Tensor]:
    """Return unconstrained globals at which states are clusters of rows; none for other latents.

    Found from `centre`, of clusters by k-means: in the order of states that fits best.
    """
    X = rows.X
    if not objective.has_states or not isinstance(X, Tensor) or rows.ranks.size > 1:
        return []
    cells = Cells.of(objective.model.explained(X))
    mean, variance = cells.mean_and_variance(rows.weights)
    scaled = cells.masked((cells.values - mean) / variance.clamp_min(1e-300).sqrt())
    n_states, generator = len(objective.atoms), torch.Generator().manual_seed(0)
    draws = (k_means(scaled, rows.weights, n_states, generator) for _ in range(_DRAWS))
    nearest = (torch.cdist(scaled, centres).min(1) for centres in draws)
    _, cluster = min(nearest, key=lambda near: float(rows.weights @ near.values**2))
    found = []
    orders = itertools.permutations(range(n_states))
    for order in itertools.islice(orders, _MOST_ORDERS):
        state = one_hot(torch.tensor(order, device=X.device)[cluster], n_states)
        chances = _SURE * state.to(X) + (1 - _SURE) / n_states
        factors = CategoricalFactors(chances.log(), objective.atoms.to(X.device))
        try:
            found.append(_best_globals(objective, factors, rows, centre))
        except (ValueError, torch.linalg.LinAlgError):  # as of a point that torch rejects
            continue
    finite = [(height, i) for i, (height, _) in enumerate(found) if height > -torch.inf]
    return [found[max(finite)[1]][1]] if finite else []


def _best_globals(objective, factors, rows, centre):
    """Maximise the log joint expected under the factors; return its height and the globals."""
    u = centre.clone().requires_grad_(True)
    solver = torch.optim.LBFGS([u], max_iter=_MAX_ITER, line_search_fn="strong_wolfe")

    def height(u):
        logs = objective.log_joints_at(objective.space.constrain(u), rows.X)
        expected = objective.expected_at(factors, logs, rows.X)
        return rows.weights @ expected + objective.space.log_prior(u)

    def loss():
        solver.zero_grad()
        with torch.enable_grad():
            value = -height(u)
            value.backward()
        return value

    solver.step(loss)
    best = u.detach()
    return float(torch.nan_to_num(height(best), nan=-torch.inf)), best
