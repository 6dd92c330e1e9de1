"""Adam for any noise, with a stop rule that works on a noisy ELBO."""

import math

import torch

from skavi.solvers._base import Outcome, Solver, State, natural_steps

_WINDOW = 200
_DECAY, _SMALLEST = 0.3, 0.003
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_MAX_RETREATS = 10


class Adam(Solver):
    """Stochastic gradient steps with per-parameter lengths, for any noise rule and any size.

    One iteration is one step. Without a ``schedule`` the learning rate falls by 0.3 whenever the
    mean ELBO of one window of steps is not significantly above that of the window before (two
    standard errors), and the fit has converged when the rate is below 0.003 of its start; iterates
    of the last stage are averaged. With a ``schedule`` the fit stops the first time a window brings
    no significant gain.

    Parameters
    ----------
    learning_rate : float, default=None
        Length of a step in natural units. None: 0.05 for factorized VI, 0.003 for a network.
    batch_size : int, default=None
        Rows a step, at random (a contiguous piece of a series). None: all rows. Rows that are not
        in the batch stay as they are.
    schedule : callable, default=None
        Map from the iteration (from 0) to a multiplier of the learning rate.

    Notes
    -----
    Source: Kingma & Ba (2015), algorithm 1; averaging: Polyak & Juditsky (1992).

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> from skavi.solvers import Adam
    >>> vi = FactorizedVI(LinearModel(), solver=Adam(learning_rate=0.1), random_state=0)
    >>> vi.fit([[0.0], [1.0], [5.0]]).converged_
    True
    """

    needs_deterministic_noise = False

    def __init__(self, learning_rate=None, batch_size=None, schedule=None):
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.schedule = schedule

    def check(self):
        if self.learning_rate is not None:
            self._require_positive("learning_rate")
        if self.batch_size is not None:
            self._require_integer("batch_size", 1)
        self._require("schedule", self.schedule is None or callable(self.schedule), "callable")

    def check_problem(self, problem):
        super().check_problem(problem)
        model = problem.objective.model
        if self.batch_size is not None and model.one_log_joint:
            raise ValueError(
                f"Adam(batch_size={self.batch_size}) needs a term a row, but "
                f"{type(model).__name__} gives one log joint for all rows: use batch_size=None."
            )

    def solve(self, problem, state, tol, max_iter, progress):
        descent = _Descent(problem, state, self.batch_size)
        default = 0.05 if problem.function.tabular else 0.003
        rate = start = self.learning_rate or default
        window = _Window(_WINDOW * (1 if not descent.lazy else math.ceil(descent.n_batches / 20)))
        curve: list[float] = []
        converged = False
        while len(curve) < max_iter:
            multiplier = self.schedule(len(curve)) if self.schedule else 1.0
            elbo = descent.step(rate * multiplier)
            if not math.isfinite(elbo):
                rate *= _DECAY
                descent.retreat(len(curve))
                continue
            curve.append(elbo)
            if window.stalled(elbo):
                descent.keep()
                rate *= _DECAY
                converged = self.schedule is not None or rate < _SMALLEST * start
                descent.averaging = rate * _DECAY < _SMALLEST * start
            if progress(descent.state(), elbo) or converged:
                break
        return Outcome(
            state=descent.state(),
            curve=curve,
            converged=converged,
            suboptimality=window.noise,
            gradient_norm=descent.gradient_norm,
        )


class _Window:
    """Compare the means of two successive windows of noisy values."""

    def __init__(self, length):
        self.length, self.values, self.before = length, [], None
        self.noise = math.inf

    def stalled(self, value):
        """Add a value; say whether a full window just ended that is no better than the last."""
        self.values.append(value)
        if len(self.values) < self.length:
            return False
        values = torch.tensor(self.values, dtype=torch.float64)
        now, self.values = (float(values.mean()), float(values.var()) / self.length), []
        before, self.before = self.before, now
        if before is None:
            return False
        self.noise = 2 * math.sqrt(now[1] + before[1])
        stalled = now[0] - before[0] <= self.noise
        if stalled:
            self.before = None
        return stalled


class _Descent:
    """Adam's moments for every tensor, row by row for a table in minibatches."""

    def __init__(self, problem, state, batch_size):
        self.problem = problem
        n = len(problem.rows)
        self.batch_size = n if batch_size is None else min(batch_size, n)
        self.n_batches = math.ceil(n / self.batch_size)
        self.lazy = self.batch_size < n and problem.function.tabular
        self.names = list(state.parameters)
        lengths, global_lengths = natural_steps(problem, state)
        self.values = [value.clone() for value in state.parameters.values()]
        self.lengths = list(lengths.values())
        self.frozen = state.globals_
        if not problem.frozen_globals:
            self.values.append(state.globals_.clone())
            self.lengths.append(global_lengths)
        self.moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in self.values]
        self.counts = [
            v.new_zeros(len(v), 1) if self._is_table(i) else v.new_zeros(())
            for i, v in enumerate(self.values)
        ]
        self.averages, self.n_averaged, self.averaging = None, 0, False
        self.gradient_norm, self.retreats = math.inf, 0
        self.keep()

    def _is_table(self, i):
        return self.lazy and i == 0

    def state(self):
        values = list(self.averages if self.averages and not self.lazy else self.values)
        globals_ = self.frozen if self.problem.frozen_globals else values.pop()
        return State(dict(zip(self.names, values, strict=True)), globals_)

    def keep(self):
        """Remember the present values as the place to retreat to."""
        self.kept = [value.clone() for value in self.values]

    def retreat(self, iteration):
        """Go back to the last values kept, with the moments forgotten."""
        self.retreats += 1
        if self.retreats > _MAX_RETREATS:
            raise FloatingPointError(
                f"Adam met a non-finite ELBO or gradient at iteration {iteration} and could not "
                f"get round it in {_MAX_RETREATS} retreats: lower solver__learning_rate, or check "
                "the model's densities for overflow."
            )
        self.values = [value.clone() for value in self.kept]
        self.moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in self.values]
        self.counts = [torch.zeros_like(count) for count in self.counts]

    def step(self, rate):
        """Take one step up; return the ELBO estimate where it began, NaN if it was not finite."""
        n, size = len(self.problem.rows), self.batch_size
        batch = self.problem.draw_batch(size) if size < n else None
        index = batch.index if batch else None
        leaves = [
            (value[index] if self._is_table(i) else value).detach().requires_grad_(True)
            for i, value in enumerate(self.values)
        ]
        elbo = self._elbo(leaves, batch)
        gradients = torch.autograd.grad(elbo, leaves)
        finite = bool(torch.isfinite(elbo)) and all(
            bool(torch.isfinite(g).all()) for g in gradients
        )
        if not finite:
            return math.nan
        squared = 0.0
        for i, gradient in enumerate(gradients):
            where = index if self._is_table(i) else slice(None)
            gradient = gradient * self.lengths[i][where]
            squared += float((gradient**2).sum())
            self._move(i, where, gradient, rate)
        self.gradient_norm = math.sqrt(squared) / self.problem.total_weight
        self._average()
        return float(elbo.detach())

    def _elbo(self, leaves, batch):
        leaves = list(leaves)
        globals_ = self.frozen if self.problem.frozen_globals else leaves.pop()
        state = State(dict(zip(self.names, leaves, strict=True)), globals_)
        if batch is None:
            return self.problem.elbo(state)
        if self.lazy:
            return self.problem.batch_elbo_of(leaves[0], globals_, batch)
        return self.problem.batch_elbo(state, batch)

    def _move(self, i, where, gradient, rate):
        first, second = self.moments[i]
        first_decay, second_decay = _BETAS
        count = self.counts[i]
        if self._is_table(i):
            count[where] += 1
            count = count[where]
            gathered = first[where], second[where]
        else:
            count += 1
            where, gathered = Ellipsis, (first, second)
        m = first_decay * gathered[0] + (1 - first_decay) * gradient
        v = second_decay * gathered[1] + (1 - second_decay) * gradient**2
        first[where], second[where] = m, v
        unbiased = (v / (1 - second_decay**count)).sqrt() + _EPSILON
        self.values[i][where] += (
            rate * self.lengths[i][where] * m / (1 - first_decay**count) / unbiased
        )

    def _average(self):
        if not self.averaging:
            return
        if self.averages is None:
            self.averages, self.n_averaged = [value.clone() for value in self.values], 1
            return
        self.n_averaged += 1
        for average, value in zip(self.averages, self.values, strict=True):
            average += (value - average) / self.n_averaged
