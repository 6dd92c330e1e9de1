"""The start of a fit: raw parameters from the model's own guess, or from its priors."""

import torch
from torch import Tensor

from skavi._data.rows import Rows
from skavi.families import DiagonalFactors
from skavi.objective import Objective
from skavi.solvers import State

#: Shares of a move away from the prior's centre, which are tried in turn. Not measured: order of
#: magnitude.
_SHARES = (1.0, 0.1, 0.01)


def start_globals(objective: Objective, rows: Rows, generator, rough: bool = False) -> Tensor:
    """Return raw parameters of q(theta) near the model's own start, or the prior's centre.

    `rough`: one that costs little and draws by chance no start of the model's own.
    """
    space = objective.space
    given = rows.ask(objective.model.initial_globals, rows.X, rows.weights) if rough else None
    if given is not None and objective.has_states:  # which read the means of q(theta) alone
        torch.randint(2**62, (), generator=generator)  # as many draws as the prior's would take
        centre = space.unconstrain(given).to(rows.weights)
        return objective.global_family.raw(DiagonalFactors(centre, torch.ones_like(centre)))
    centre, spread = space.start(generator)
    centre, spread = centre.to(rows.weights), spread.to(rows.weights)
    if not rough:
        given = rows.ask(objective.model.drawn_globals, rows.X, rows.weights, generator)
    if given is not None:
        centre = space.unconstrain(given).to(rows.weights)
    else:
        # The prior's centre may be a saddle point for a vector (not for a scalar): add noise.
        away = torch.zeros_like(centre)
        for where in space.slices.values():
            size = where.stop - where.start
            if size > 1:
                noise = torch.randn(size, generator=generator, dtype=torch.float64)
                away[where] = 0.1 * spread[where] * noise.to(centre)
        centre = centre + _backed_off(objective, rows, centre, away) * away
    return objective.global_family.raw(
        DiagonalFactors(centre, objective.model.start_share * spread)
    )


def _backed_off(objective, rows, centre, away):
    """Return the largest share of a move away from the centre where the log joint is finite.

    Where one of a distribution's own checks refuses theta, the model's checks name it.
    """
    for share in _SHARES if bool(away.any()) else ():
        u = centre + share * away
        try:
            theta = objective.space.constrain(u)
            z, _ = objective.model.initial_locals(theta, rows.X)
            terms = objective.model.log_terms(theta, z, rows.X)
        except (ValueError, RuntimeError, TypeError):
            return share
        if not rows.ranks.any(not bool(torch.isfinite(terms).all())):
            return share
    return 0.0


def model_start(objective: Objective, rows: Rows, generator) -> State:
    """Return the model's own start: raw factors of all rows and of the globals."""
    raw_globals = start_globals(objective, rows, generator)
    return State(objective.start_locals(raw_globals, rows.X), {}, raw_globals)


def density_at_start(objective: Objective, rows: Rows) -> float:
    """Return the model's log density at a reproducible point, to detect changes of the model."""
    generator = torch.Generator().manual_seed(0)
    raw_globals = start_globals(objective, rows, generator, rough=True)
    theta = objective.space.constrain(objective.global_factor(raw_globals).mean)
    raw = objective.start_locals(raw_globals, rows.X)
    z = objective.typical_latents(raw, raw_globals, rows.X)
    with torch.no_grad():
        return float(objective.model.log_terms(theta, z, rows.X).sum())
