"""Draws from q with their log densities under model and q, for ArviZ and importance weights."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from skavi._data.blockwise import EVALUATED_NUMBERS
from skavi._numerics.aligned import aligned
from skavi._numerics.whole_numbers import is_whole
from skavi._platform.forks_and_threads import seeded
from skavi._platform.random_state import drawn_seed, private_state
from skavi.distributions import defaults_of
from skavi.families import NormalFactors
from skavi.models import LatentVariableModel
from skavi.models._global_space import Theta
from skavi.objective import Objective
from skavi.posterior._arviz import data_tree, row_labels

#: Dimensions of the rows' variables after the draws.
_DIMS = {"z": ("row", "latent"), "x": ("row", "feature")}


@dataclass(frozen=True)
class Draw:
    """One draw of all latents, on the unconstrained scale where q is normal.

    Attributes
    ----------
    theta : Theta
        Globals on the model's scale.
    z : Tensor of shape (n_rows, n_latents)
    log_terms : Tensor of shape (n_rows,), or a scalar for all rows
        log p(z_n, x_n | theta), nats.
    log_prior : Tensor, a scalar
        log p(u), Jacobians included.
    log_q_rows : Tensor of shape (n_rows,)
        log q(z_n).
    log_q_globals : Tensor, a scalar
        log q(u).
    """

    theta: Theta
    z: Tensor
    log_terms: Tensor
    log_prior: Tensor
    log_q_rows: Tensor
    log_q_globals: Tensor

    @property
    def log_joint(self) -> Tensor:
        """Log density of data and all latents, nats."""
        return self.log_terms.sum() + self.log_prior

    @property
    def log_q(self) -> Tensor:
        """Log density of q, nats."""
        return self.log_q_rows.sum() + self.log_q_globals


@dataclass(frozen=True)
class FittedPosterior:
    """q(z_n) of some rows and q(theta), unconstrained, on the CPU."""

    objective: Objective
    X: Tensor
    factors: NormalFactors
    q_theta: NormalFactors

    @classmethod
    def of(cls, position) -> "FittedPosterior":
        """Return q at the `Position` of a fit on rows."""
        objective = position.fit.on_cpu().objective
        X = position.rows.X.cpu()
        factors = objective.local_factors(position.raw.cpu())
        return cls(objective, X, factors, objective.global_factor(position.raw_globals.cpu()))

    @property
    def model(self) -> LatentVariableModel:
        """The fitted model."""
        return self.objective.model

    def noise(self, state) -> tuple[Tensor, Tensor]:
        """Draw standard normals for the rows and for the globals."""
        local = state.standard_normal(tuple(self.factors.mean.shape))
        return aligned(local), aligned(state.standard_normal(len(self.q_theta.mean)))

    def at(self, local: Tensor, noise: Tensor) -> Draw:
        """Return the draw for given standard normal noise."""
        u, z = self.q_theta.draw(noise), self.factors.joint_draw(local)
        theta = self.objective.space.constrain(u)
        with torch.no_grad(), defaults_of(z):
            return Draw(
                theta=theta,
                z=z,
                log_terms=self.model.log_terms(theta, z, self.X),
                log_prior=self.objective.space.log_prior(u),
                log_q_rows=self.factors.joint_log_prob(local),
                log_q_globals=self.q_theta.log_prob(noise),
            )

    def at_each(self, noises: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Draw]:
        """Yield the draw for each pair of standard normal noise; many are evaluated at once."""
        left = iter(noises)
        at_once = max(1, EVALUATED_NUMBERS // max(1, self.X.numel(), self.factors.mean.numel()))
        while some := list(islice(left, at_once)):
            yield from self._together(some)

    def _together(self, pairs):
        if len(pairs) > 1 and self.objective.batched:
            local, noise = (torch.stack(part) for part in zip(*pairs, strict=True))
            with suppress(RuntimeError):  # where q's draw, or a density, has no batching rule
                found = torch.func.vmap(lambda *pair: _as_dict(self.at(*pair)))(local, noise)
                return [_draw_of(found, s) for s in range(len(pairs))]
        return [self.at(*pair) for pair in pairs]

    def draws(self, n_draws: int, state) -> Iterator[Draw]:
        """Yield `n_draws` draws."""
        return self.at_each(self.noise(state) for _ in range(n_draws))


def _as_dict(draw):
    return vars(draw) | {"theta": dict(draw.theta)}


def _draw_of(stacked, s):
    """Return one of the draws whose attributes are stacked."""
    theta = Theta({name: values[s] for name, values in stacked["theta"].items()})
    return Draw(theta=theta, **{name: v[s] for name, v in stacked.items() if name != "theta"})


def check_draws(n_draws, fewest):
    """Raise unless n_draws is an integer >= fewest."""
    if not is_whole(n_draws, fewest):
        raise ValueError(f"n_draws={n_draws!r} must be an integer >= {fewest}.")


@dataclass(frozen=True)
class DrawNames:
    """Labels along the dimensions of ArviZ's variables; None: 0, 1, ...

    Attributes
    ----------
    rows, features : array-like or None
    latents : array-like of at least n_latents names
    """

    rows: Any
    features: Any
    latents: Any


def arviz_tree(fitted: FittedPosterior, X, names: DrawNames, elbo, n_draws, random_state):
    """Return draws of a fit on validated rows as ArviZ's DataTree: `RowInference.to_arviz`."""
    state = private_state(random_state)
    taken = {"x", "z"} & set(fitted.objective.space.slices)
    if taken:
        raise ValueError(
            f"The model has a global named {taken.pop()!r}, but ArviZ's tree has the rows as x and "
            "the latents as z: rename the global."
        )
    seed = drawn_seed(state)
    with seeded(seed):
        groups = _groups(fitted, fitted.draws(n_draws, state))
    observed = fitted.model.explained(X.toarray() if scipy.sparse.issparse(X) else X)
    groups["observed_data"] = {"x": np.array(observed, dtype=np.float64)}
    features = np.arange(observed.shape[1]) if names.features is None else names.features
    coords = {
        "row": row_labels(names.rows, X.shape[0]),
        "feature": features,
        "latent": np.array(
            names.latents[: fitted.model.count_latents(fitted.model.n_explained(fitted.X))]
        ),
    }
    if labels := fitted.model.columns_.labels("covariates"):
        coords["covariate"] = np.array(labels)
    attrs = {"inference_library": "skavi", "elbo": elbo}
    return data_tree(groups, {**fitted.model.global_dims(), **_DIMS}, coords, attrs)


def _groups(fitted, draws):
    """Stack the values of each draw; leave out those that the model does not define."""
    model, X, within = fitted.model, fitted.X, fitted.model.bounded
    columns: dict[tuple[str, str], list[np.ndarray]] = {}
    for draw in draws:
        known = {("posterior", name): value for name, value in draw.theta.items()}
        own = model.own_scale(draw.theta, draw.z, *model.own_given(X))
        known[("posterior", "z")], _ = model.by_row(own, X)
        by_row = model.by_row(draw.z, X)
        known[("sample_stats", "lp")] = draw.log_joint
        known[("sample_stats", "log_q")] = draw.log_q
        for group, method in (
            ("posterior_predictive", lambda *draw: model.explained(model.replicate(*draw))),
            (
                "log_likelihood",
                lambda theta, z, X: model.log_likelihood(theta, within(theta, z, X), X),
            ),
        ):
            with suppress(NotImplementedError):
                known[(group, "x")] = method(draw.theta, *by_row)
        for place, value in known.items():
            columns.setdefault(place, []).append(value.numpy())
    groups: dict[str, dict[str, np.ndarray]] = {}
    for (group, name), values in columns.items():
        groups.setdefault(group, {})[name] = np.stack(values)
    return groups
