"""The start of an inference function, near given factors of the rows.

A network's ELBO has many poor local optima: where a row has two equally good optima, the function
has to jump from one to the other between rows, which no gradient shows. Regression on the rows' own
factors finds such jumps, and with a robust loss a few rows that are fitted badly do not spoil the
others. So several networks maximise a mixture of the ELBO and a penalty on the distance from these
factors, on a subset of rows with q(theta) given, and the best network is kept.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from skavi._curvature import gradient_of
from skavi._data.rows import Rows
from skavi._fit.defaults import default_solver
from skavi._fit.problem import Problem
from skavi._numerics.sums import inner
from skavi.solvers import State

#: Share of the ELBO in the first mixture: the penalty leads at first, with 19 parts of 20. Not
#: measured alone.
_FIRST_SHARE = 0.05
#: Share of the ELBO in the second mixture: both count alike. Not measured alone.
_SHARE = 0.5
#: Gauss-Newton iterations of each round, after which half of the starts go on: 15 in all.
_ROUNDS = (3, 4, 8)
#: Gauss-Newton iterations at the second share, on some rows: half of the first 15. Not
#: measured.
_ITERATIONS = 7
#: Gauss-Newton iterations at the second share, on all rows: few, because the fit itself
#: follows. Not measured.
_LAST_ITERATIONS = 4
#: Times as many iterations for other solvers, whose steps gain less. Not measured.
_PATIENCE = 5
#: Starts that go on after the rounds: several, since their order may still change. Not
#: measured.
_KEPT = 3
#: Starts that go on to all rows: each costs as much as iterations of the fit. Not measured.
_LAST = 2
#: Nats a row below the ELBO of the rows' own factors: a start so close needs no other starts.
_CLOSE = 0.01
#: Rows that represent all: sums over them are within 2 % of those over 3,000 rows
#: (test_network_start).
_ROWS = 1000
#: Rows between which guided units may turn: time grows with the distances between them.
_EXAMPLES = 2000
#: Guided regressions: with 80 (200 before) two layers of 32 units end 0.07 % off the best
#: (nonlinear.json).
_MOST_GUIDED = 80
#: Guided regressions that go on beside the random starts: half as many. Not measured.
_KEPT_GUIDED = 4
#: Rows x parameters of all guided regressions: 2,000 rows and 1,875 parameters still get all
#: 80.
_GUIDED_BUDGET = 3e8
#: Operations of one Gauss-Newton step from all starts: two layers of 32 units on 1,000 rows get
#: 6 starts (1e10: 2).
_BUDGET = 3e10
#: Nats a row at which the run from a start may end: the fit goes on to its own tol.
_TOL = 1e-4
#: Nats: a row's penalty grows as a square below this, as a logarithm above; 10 nats are 4.5
#: sds.
_OUTLIER = 10.0


@dataclass(frozen=True)
class Penalty:
    """A penalty on each row's distance from a given factor, mixed with the row's ELBO term.

    Attributes
    ----------
    share : float
        Weight of the ELBO terms. The penalty c log(1 + r^2 / 2 c) has weight 1 - share, with r the
        distance from `targets` in natural steps (Cauchy's loss).
    targets : Tensor of shape (n_rows, P)
    steps : Tensor of shape (n_rows, P)
    """

    share: float
    targets: Tensor
    steps: Tensor

    def __getitem__(self, index) -> "Penalty":
        return Penalty(self.share, self.targets[index], self.steps[index])

    def mix(self, terms: Tensor, raw: Tensor) -> Tensor:
        """Mix the rows' ELBO terms with the penalty of their raw parameters."""
        penalty = 0.5 * (((raw - self.targets) / self.steps) ** 2).sum(-1)
        penalty = _OUTLIER * torch.log1p(penalty / _OUTLIER)
        return self.share * terms - (1 - self.share) * penalty


@dataclass(frozen=True)
class PenalisedProblem(Problem):
    """A problem with a penalty on each row's distance from a given factor."""

    penalty: Penalty | None = None

    is_start = True

    @classmethod
    def of(cls, problem: Problem, penalty: Penalty) -> "PenalisedProblem":
        """Return a problem with a penalty mixed into its rows' terms."""
        return cls(
            **{each.name: getattr(problem, each.name) for each in fields(Problem)}, penalty=penalty
        )

    def restricted(self, index):
        assert self.penalty is not None
        return PenalisedProblem.of(super().restricted(index), self.penalty[index])

    def row_terms(self, raw, raw_globals):
        assert self.penalty is not None
        return self.penalty.mix(super().row_terms(raw, raw_globals), raw)

    def row_derivatives(self, raw, raw_globals):
        assert self.penalty is not None
        known = super().row_derivatives(raw, raw_globals)
        if known is None:
            return None
        g, H, *rest = (self.penalty.share * each for each in known)
        with torch.enable_grad():
            raw = raw.detach().requires_grad_(True)
            value = (self.rows.weights * self.penalty.mix(torch.zeros_like(raw[:, 0]), raw)).sum()
            (slope,) = gradient_of(value, (raw,), create_graph=True)
            columns = [gradient_of(column.sum(), (raw,))[0] for column in slope.unbind(-1)]
        return g + slope.detach(), H + torch.stack(columns, -1), *rest


def best_start(problem: Problem, targets: Tensor, raw_globals: Tensor) -> State:
    """Return a state in which the rows' factors are near `targets`, raw factors of all rows.

    One regression is enough where the start is not random, or where it reaches the ELBO of the
    targets. Else the best of several random and guided regressions are improved.
    """
    function, rows = problem.function, problem.rows

    def random_start():
        reading = problem.features, targets, rows.weights, problem.generator
        raw_locals, shared = rows.ask(function.start, *reading)
        return State(raw_locals, shared, raw_globals)

    states, n_more = [random_start()], function.n_starts - 1
    if not n_more or not _solver(problem, targets).needs_deterministic_noise:
        return states[0]
    with torch.no_grad():
        enough = float(problem.elbo_of(targets, raw_globals)) - _CLOSE * problem.total_weight
    states, reached = _rank(problem, states)
    if reached >= enough:
        return states[0]
    states += [random_start() for _ in range(n_more)]
    states += [State(None, shared, raw_globals) for shared in _regress_guided(problem, targets)]
    states, reached = _rank(problem, states)
    some = _restrict_to_few(problem, targets, _ROWS)
    if reached >= enough or some is None:
        return states[0]
    few, near = some
    nearer = states[: _count_affordable(few, near)]
    for n_iter in _ROUNDS:
        nearer, _ = _rank(few, _maximise_mixture(few, near, nearer, _FIRST_SHARE, n_iter))
        nearer = nearer[: max(_KEPT, len(nearer) // 2)]
    nearer = _maximise_mixture(few, near, nearer[:_KEPT], _SHARE, _ITERATIONS)
    everyone = replace(problem, frozen_globals=True)
    last, _ = _rank(everyone, [*nearer, states[0]])
    last = _maximise_mixture(everyone, targets, last[:_LAST], _SHARE, _LAST_ITERATIONS)
    return _rank(everyone, last)[0][0]


def _regress_guided(problem, targets):
    """Return the parameters of those guided regressions that come nearest to the targets."""
    function, some = problem.function, _restrict_to_few(problem, targets, _EXAMPLES)
    if some is None:
        return []
    few, near = some
    features, weights, family = few.features, few.rows.weights, problem.objective.family
    steps = family.steps(problem.objective.local_factors(near))
    n_numbers = len(features) * _n_parameters(problem, targets)
    found = []
    for _ in range(min(_MOST_GUIDED, int(_GUIDED_BUDGET / n_numbers))):
        start = function.guided_start(features, near, steps, weights, problem.generator)
        if start is None:
            return []
        _, shared = start
        left = (function.evaluate(shared, features) - near) / steps
        distance = float(inner(weights, left.square().sum(1)))
        if math.isfinite(distance):
            found.append((distance, shared))
    found.sort(key=lambda pair: pair[0])
    return [shared for _, shared in found[:_KEPT_GUIDED]]


def _rank(problem, states):
    """Sort states by their ELBO; return the highest ELBO as well."""
    with torch.no_grad():
        elbos = torch.stack([problem.elbo(state) for state in states])
    elbos = torch.nan_to_num(elbos, nan=-math.inf)
    return [states[i] for i in elbos.argsort(descending=True)], float(elbos.max())


def _restrict_to_few(problem, targets, most):
    """Restrict the problem, with q(theta) given, to rows that represent all, on every rank.

    None where a part of the rows would follow another model.
    """
    rows, take = problem.rows, problem.rows.ranks.take
    coreset = problem.objective.model.coupling.coreset(rows, problem.features, most)
    if coreset is None:
        return None
    index, weights = coreset
    few = Rows(rows.take(index).X, weights)
    features = take(problem.features, index)
    restricted = replace(problem, rows=few, features=features, frozen_globals=True)
    return restricted, take(targets, index)


def _maximise_mixture(problem, targets, states, share, n_iter):
    """Maximise the mixture of ELBO and penalty from every state."""
    objective, solver = problem.objective, _solver(problem, targets)
    steps = objective.family.steps(objective.local_factors(targets))
    problem = PenalisedProblem.of(problem, Penalty(share, targets, steps))
    n_iter *= 1 if solver.second_order else _PATIENCE
    return [solver.solve(problem, s, _TOL, n_iter).state.copied() for s in states]


def _solver(problem, targets):
    return default_solver(replace(problem.setting, n_parameters=_n_parameters(problem, targets)))


def _n_parameters(problem, targets):
    return problem.function.n_parameters(problem.features.shape[-1], targets.shape[1])


def _count_affordable(problem, targets):
    """Count the starts for which there is time."""
    size = _n_parameters(problem, targets)
    return max(2, int(_BUDGET / (targets.numel() * size**2 + size**3)))
