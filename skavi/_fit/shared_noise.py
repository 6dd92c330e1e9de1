"""Globals that no term of the log joint holds together: a product rule can share their nodes.

Where the log joint of a row is a sum A(u_i, rest) + B(u_j, rest), its expectation under independent
factors needs the law of (u_i, rest) and that of (u_j, rest), never that of (u_i, u_j): both may
move with one dimension of noise. So the difficulties of a test's questions need one dimension
together, however many they are. Globals that meet in a term are the edges of a graph, and a
colouring of it gives the dimensions.

Whether two globals meet is seen from the mixed difference over steps as long as their spread, which
is zero if and only if the function is such a sum on that rectangle; a derivative would miss kinks.
"""

from dataclasses import replace

import torch
from torch import Tensor

from skavi._data.blockwise import EVALUATED_NUMBERS
from skavi._data.rows import Rows, cells_a_row
from skavi.families import DiagonalFactors, DiagonalNormal
from skavi.objective import Objective

#: Globals up to which all pairs are looked at: 2,000 evaluations of the few rows below.
_MOST_GLOBALS = 64
#: Rows on which all pairs are looked at; all rows then confirm what was found. Not measured.
_FEW_ROWS = 64
#: Spreads of the points, in those of the prior or of the start: what is hidden by large terms at
#: one of them, or not finite, shows at another.
_SPREADS = (1.0, 0.1)
#: Of the terms' size: what rounding leaves of a mixed difference is below it, what meets is above.
_ROUNDING = 1e-10


def with_shared_noise(objective: Objective, rows: Rows) -> Objective:
    """Return the objective with the globals that can share a dimension of noise."""
    size = objective.n_drawn_globals
    known = objective.model.has_closed_form(objective.family, objective.global_family)
    independent = isinstance(objective.global_family, DiagonalNormal)
    if known or not independent or not 1 < size <= _MOST_GLOBALS or rows.ranks.size > 1:
        return objective
    if size < objective.space.size or not objective.model.coupling.separable:
        return objective
    if objective.model.first_form():
        return objective  # what meets is not the same in all of them
    try:
        found = _find(objective, rows)
    except (ValueError, RuntimeError, torch.linalg.LinAlgError):
        return objective  # the model refuses a point: nothing is known
    return objective if found is None else replace(objective, shared=found[0], meet=found[1])


def _find(objective, rows):
    size, n = objective.n_drawn_globals, len(rows)
    step = max(1, n // _FEW_ROWS)
    few = rows.X[::step] if objective.model.coupling.independent else rows.X[:_FEW_ROWS]
    generator = torch.Generator().manual_seed(0)
    meet = torch.zeros(size, size, dtype=torch.bool)
    for spread in _SPREADS:
        meet |= _Probe(objective, few, spread, generator).pairs()
    shared = _colour(meet)
    if len(set(shared)) == size:
        return None
    index = torch.tensor(shared)
    tables = [rows.X] if n > len(few) else []
    if isinstance(few, Tensor) and objective.model.coupling.independent:
        tables.append(_shuffled(rows.X, generator))
    for table in tables:
        probes = [_Probe(objective, table, spread, generator) for spread in _SPREADS]
        if not all(probe.confirms(index) for probe in probes):
            return None
    return shared, meet


def _shuffled(X, generator):
    """Return rows whose cells come from different rows: new rows may hold any of them together."""
    order = torch.rand(X.shape, generator=generator).argsort(0).to(X.device)
    return X.gather(0, order)


def _colour(meet):
    """Return a number for each node of a graph such that neighbours differ, and few are needed."""
    colours = [-1] * len(meet)
    for i in meet.sum(1).argsort(descending=True, stable=True).tolist():
        taken = {colours[j] for j in meet[i].nonzero()[:, 0].tolist()}
        colours[i] = next(c for c in range(len(meet)) if c not in taken)
    numbered = {c: k for k, c in enumerate(dict.fromkeys(colours))}
    return tuple(numbered[c] for c in colours)


class _Probe:
    """A row's log joint at random points, and after steps of some of the globals from there."""

    def __init__(self, objective, X, spread, generator):
        self.objective, self.X = objective, X
        centre, width = (each.to(X.dtype) for each in objective.space.start(generator))
        n, size = len(X), objective.space.size
        noise = torch.randn(3, size, generator=generator, dtype=X.dtype)
        self.at, self.steps = centre + spread * width * noise[0], spread * width * noise[1]
        # Steps of at least half a spread: short ones would hide what meets.
        self.steps = self.steps + 0.5 * spread * width * self.steps.sign()
        start = objective.global_family.raw(DiagonalFactors(self.at, width))
        self.factors = objective.local_factors(objective.start_locals(start, X))
        k = self.factors.mean.shape[1]
        z = torch.randn(1, n, k, generator=generator, dtype=X.dtype)
        self.z, self.rest = self.factors.draw(z)[0], objective.global_factor(start)

    def terms(self, moves) -> Tensor:
        """Return the rows' terms after moves of the globals, shape (n_moves, n_terms)."""
        objective, points = self.objective, self.at + moves * self.steps
        at_points = objective.density(self.factors, self.rest.given_first(len(self.at)), self.X)

        def density(u, z):
            return at_points(u, z).reshape(-1)

        at_once = max(1, EVALUATED_NUMBERS // max(1, len(self.X) * cells_a_row(self.X)))
        with torch.no_grad():
            return torch.cat(
                [
                    objective._evaluate(density, u, self.z.expand(len(u), *self.z.shape))
                    for u in points.split(at_once)
                ]
            )

    def pairs(self) -> Tensor:
        """Say of all pairs of globals whether they meet in a row, shape (size, size)."""
        size = len(self.at)
        one = torch.eye(size, dtype=self.at.dtype)
        i, j = torch.triu_indices(size, size, 1)
        here = self.terms(torch.zeros_like(one[:1]))[0]
        single, double = self.terms(one), self.terms(one[i] + one[j])
        meet = torch.zeros(size, size, dtype=torch.bool)
        found = self._is_left(double - single[i] - single[j] + here, here, single[i], single[j])
        meet[i, j] = found
        return meet | meet.mT

    def confirms(self, index) -> bool:
        """Say whether all globals of one dimension add up, in every row."""
        size = len(self.at)
        one = torch.eye(size, dtype=self.at.dtype)
        groups = torch.nn.functional.one_hot(index).mT.to(one)
        here = self.terms(torch.zeros_like(one[:1]))[0]
        single, together = self.terms(one) - here, self.terms(groups) - here
        left = together - groups @ single
        return not bool(self._is_left(left, here, groups @ single.abs(), together).any())

    def _is_left(self, left, *terms):
        """Say of mixed differences whether more than rounding is left in a row; NaN: it is."""
        scale = 1 + sum(term.abs() for term in terms)
        return ~(left.abs() <= _ROUNDING * scale).all(-1)
