"""Regressions without latents: rows that read theta through one number, linear in it.

A row's log likelihood is then constant along all directions of the unconstrained globals but one,
that of its slope, wherever that is taken. This is looked for by steps across the slope as long as
theta's spread: no step may change a row.
"""

from dataclasses import replace

import torch
from torch import Tensor

from skavi._data.blockwise import EVALUATED_NUMBERS
from skavi._data.coupling import INDEPENDENT
from skavi._data.rows import Rows
from skavi.noise import LinearPredictor
from skavi.objective import Objective

#: Spreads of the points, in those of the prior: a row that is flat, or not finite, at one of them
#: is not at another.
_SPREADS = (1.0, 0.1, 0.01)
#: Of a row's size: what rounding leaves of a step across its slope is below it.
_ROUNDING = 1e-9


def with_linear_predictor(objective: Objective, rows: Rows) -> Objective:
    """Return the objective, marked if every row is known to read theta through one number."""
    return replace(objective, linear_predictor=_is_known(objective, rows))


def require_linear_predictor(objective: Objective, noise, rows: Rows | None = None) -> None:
    """Raise a ValueError if a rule for such models is given for another one.

    Without rows, as in a file: for one that no rows would show to be such a model.
    """
    if objective.knows_row_derivatives or not isinstance(noise, LinearPredictor):
        return
    if not (may_be_linear(objective) if rows is None else _is_known(objective, rows)):
        raise ValueError(
            f"noise={noise!r} needs rows without latents that read the globals through one number, "
            f"linear in their unconstrained values, but {type(objective.model).__name__} does not "
            "show to be such a model: leave noise at None."
        )


def may_be_linear(objective: Objective) -> bool:
    """Say whether rows have no latents and q(theta) is drawn, as such a rule needs."""
    plain, family = objective.model.coupling is INDEPENDENT, objective.global_family
    without = not objective.has_factors and objective.n_drawn_globals == objective.space.size > 1
    closed = objective.model.has_closed_form(objective.family, family)
    return plain and without and family.random and not closed


def _is_known(objective, rows):
    """Say whether no row changes across its slope; False where the model cannot be asked."""
    if not (isinstance(rows.X, Tensor) and objective.batched and may_be_linear(objective)):
        return False
    generator = torch.Generator().manual_seed(0)
    try:
        found = _holds(objective, rows.X, generator)
    except (ValueError, RuntimeError, TypeError):
        found = False
    return not rows.ranks.any(not found)


def _holds(objective, X, generator):
    nodes = LinearPredictor().nodes(objective.space.size, 0, 1, None).to(X)
    centre, width = (each.to(X) for each in objective.space.start(generator))
    draw = {"generator": generator, "dtype": X.dtype}
    size = max(1, EVALUATED_NUMBERS // objective.space.size)
    order = torch.rand(X.shape, **draw).argsort(0).to(X.device)
    shuffled = X.gather(0, order)  # new rows may hold any cells together
    for part in [piece for table in (X, shuffled) for piece in table.split(size)]:
        direction, finite = objective.slopes(part, nodes.slopes_at), torch.zeros(len(part)).bool()
        for spread in _SPREADS:
            at, step = (spread * width * torch.randn(len(width), **draw).to(X) for _ in range(2))
            along = (direction @ step).unsqueeze(-1) * direction
            u = torch.stack([(centre + at).expand_as(along), centre + at + step - along])
            here, there = objective.log_joints_of_rows(u, part)
            known = torch.isfinite(here).cpu()
            finite |= known
            same = (there - here).abs() <= _ROUNDING * (1 + here.abs())
            if not bool(same.cpu()[known].all()):
                return False
        if not bool(finite.all()):
            return False
    return True
