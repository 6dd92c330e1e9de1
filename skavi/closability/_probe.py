"""Scores of a log joint at random points, and how they depend on other rows.

These are the evidence for the verdict of `skavi.closability`: one row's latent, one row of X or the
position of all rows is changed at a time, and the change of every row's score d log p / d z_n is
recorded.
"""

import copy

import numpy as np
import torch
from sklearn.utils import check_array
from torch import Tensor

from skavi._data.column_kinds import LEVELLED, Kind
from skavi._data.column_roles import ColumnRoles, GivenColumn, as_table, named_columns
from skavi._data.validated_tables import roles_in
from skavi._numerics.whole_numbers import is_whole
from skavi._platform.forks_and_threads import seeded
from skavi.distributions import defaults_of
from skavi.families import DiagonalNormal
from skavi.objective import bind

#: Relative effects below this count as rounding.
TOLERANCE = 1e-8
#: Rows of the long probe: dependences up to 60 rows apart are seen; a verdict takes 0.8 s
#: (test_verdict).
_N_ROWS = 120
#: Rows: with one there is no other row to depend on.
_FEWEST_ROWS = 2
#: Rows examined for dependences far away: no false verdict over 20 seeds (cae161b).
_N_TARGETS = 8
#: Share of the largest score that is added to each row's scale: sums over rows round by it
#: (cae161b).
_SHARED_ROUNDING = 1e-4
#: Of columns of levels, where no table tells how many.
_LEVELS = 3
#: Prior sds from the centre: typical first, nearer only where scores are not finite.
_SPREADS = (1.0, 0.3, 0.03)


class Probe:
    """A model's log joint at random points."""

    def __init__(self, model, X, spare, generator):
        self.model, self.X, self.spare, self.generator = model, X, spare, generator
        self.n = len(X)
        self.objective = bind(model, None, DiagonalNormal(), X)
        self.centre, self.spread = (t.to(X) for t in self.objective.space.start(generator))
        self.new_point()

    def first(self, n_rows):
        """Return a probe of the first rows only."""
        return Probe(self.model, self.X[:n_rows], self.spare, self.generator)

    def new_point(self):
        """Draw theta and z until the scores are finite there."""
        for spread in _SPREADS:
            noise = self._randn(self.objective.space.size)
            u = self.centre + spread * self.spread.clamp_max(3.0) * noise
            self.theta = self.objective.space.constrain(u)
            self.latents = self.objective.probed_latents(self.theta, self.X)
            self.z = self.latents.draw(spread, self.generator)
            self.base = self.score(self.z, self.X)
            if bool(torch.isfinite(self.base).all()):
                moved = torch.nan_to_num(self.score(self._move(self.z, 0.1), self.X), posinf=0.0)
                size = torch.maximum(self.base.abs(), moved.abs()).amax(1)
                # In a sum over rows the rounding of the largest score affects all rows.
                self.scale = (size + _SHARED_ROUNDING * size.amax()).clamp_min(1e-300)
                self.others = self._others()
                return
        raise ValueError(
            f"{type(self.model).__name__}'s log joint has no finite score at any point tried: pass "
            "rows X that lie in the support of the likelihood."
        )

    def _randn(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def _move(self, z, factor):
        return self.latents.moved(z, factor, self.generator)

    def _others(self):
        """Return for each row a different row to exchange it for: an equal one has no effect."""
        differs = (self.X.unsqueeze(1) != self.spare).any(-1).double()
        alone = differs.sum(1, keepdim=True) == 0
        choice = torch.multinomial(differs + alone, 1, generator=self.generator)[:, 0]
        return self.spare[choice]

    def log_joint(self, z, X):
        with defaults_of(z):
            return self.model.log_terms(self.theta, z, X).sum()

    def score(self, z: Tensor, X: Tensor) -> Tensor:
        """d log p / d z, shape (n_rows, n_latents), or differences over states."""
        return self.latents.score(lambda z: self.log_joint(z, X), z)

    def change(self, score, rows=slice(None)):
        """Return the change of the rows' scores from those at the point, relative to their size."""
        change = (score - self.base)[rows].abs().amax(1) / self.scale[rows]
        return torch.nan_to_num(change, nan=0.0, posinf=0.0)

    def latent_coupling(self):
        """Move one row's latent at a time; return the largest change of another row's score.

        Unlike second derivatives, differences at a finite distance do not vanish by accident at a
        point, and do not need second derivatives of the user's code.
        """
        worst = 0.0
        for m in range(self.n):
            elsewhere = torch.arange(self.n) != m
            for factor in (1.0, 0.1, 0.01):  # shorter where the density overflows
                z = self.z.clone()
                z[m] = self._move(self.z, factor)[m]
                score = self.score(z, self.X)
                worst = max(worst, float(self.change(score, elsewhere).amax()))
                if bool(torch.isfinite(score).all()):
                    break
        return worst

    def row_influence(self):
        """Exchange one row of X at a time; return the change of every row's score, (n, m)."""
        influence = np.zeros((self.n, self.n))
        for m in range(self.n):
            X = self.X.clone()
            X[m] = self.others[m]
            influence[:, m] = self.change(self.score(self.z, X)).numpy()
        return influence

    def position_dependence(self, window):
        """Shift X and the latents together; compare the scores of rows away from the ends."""
        before, after = window
        worst = 0.0
        for shift in (1, 2, self.n // 3):
            moved = self.score(self.z.roll(shift, 0), self.X.roll(shift, 0))
            inner = torch.arange(before, self.n - after - shift)
            change = self.change(moved.roll(-shift, 0), inner)
            worst = max(worst, float(change.amax()))
        return worst

    def sees_beyond(self, window):
        """Say whether a row's score depends on anything outside `window`, or on its position.

        For a few rows, all other latents and all rows outside the window are changed at once.
        """
        before, after = window
        worst = self.position_dependence(window)
        for n in torch.linspace(0, self.n - 1, _N_TARGETS).long().tolist():
            inside = slice(max(n - before, 0), n + after + 1)
            X, z = self.others.clone(), self._move(self.z, 0.5)
            X[inside], z[n] = self.X[inside], self.z[n]
            worst = max(worst, float(self.change(self.score(z, X), slice(n, n + 1))))
        return worst > TOLERANCE


def probe(model, X, n_features, generator) -> Probe:
    """Return a long probe of the model, adapted to rows of X, or to simulated or random rows."""
    if X is not None:
        rows, model = _rows_of(model, X)
        short = max(_N_ROWS - len(rows), 0)  # if rows are too few, some are repeated at random
        again = torch.randint(len(rows), (short,), generator=generator)
        return Probe(model, torch.cat([rows, rows[again]]), _spare(rows, generator), generator)
    if not is_whole(n_features, 1):
        raise ValueError(f"n_features={n_features!r} must be an integer >= 1.")
    model = _with_places(model, n_features)
    simulated = _simulate(model, n_features, generator)
    failure = ValueError(f"no rows of {n_features} columns to probe with")
    for rows in _random_rows(model, n_features, generator) if simulated is None else [simulated]:
        try:
            model.check_data(rows)
            adapted = model.adapted(rows, rows.new_ones(len(rows)))
            return Probe(adapted, rows, rows, generator)
        except ValueError as error:  # outside the support, by the model or by torch
            failure = error
    raise failure


def _spare(rows, generator):
    """Return rows to exchange others for: those of X, or random ones if those are all equal."""
    if bool((rows == rows[0]).all()):
        return rows + torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    return rows


def _rows_of(model, X):
    """Return the first rows of a user's table, or of a fit's, and the model adapted to them."""
    name, named = type(model).__name__, model.named_columns()
    if isinstance(X, Tensor):
        return X[:_N_ROWS], model.adapted(X[:_N_ROWS], X.new_ones(min(len(X), _N_ROWS)))
    model, X = copy.copy(model), as_table(X)
    finite = "allow-nan" if model.allows_missing else True
    kinds = {"dtype": np.float64, "ensure_all_finite": finite, "ensure_min_samples": _FEWEST_ROWS}
    if named or model.named_kinds() is not None:
        if not model.columns_.told:
            model.columns_ = roles_in(X, named, name, True, (), model.named_kinds())
        X, given = model.columns_.rows(X, name)
        X = np.hstack([check_array(X, **kinds), given])
    rows = torch.tensor(check_array(X, **kinds)[:_N_ROWS])
    model.check_data(rows)
    return rows, model.adapted(rows, rows.new_ones(len(rows)))


def _with_places(model, n_features):
    """Return the model with its given columns, as numbers, after `n_features` explained ones."""
    named, place, given = model.named_columns(), n_features, {}
    for role, columns in named.items():
        given[role] = tuple(GivenColumn(place + i, str(c)) for i, c in enumerate(columns))
        place += len(columns)
    kinds = _kinds(model.named_kinds(), n_features)
    if named or kinds:
        model = copy.copy(model)
        model.columns_ = ColumnRoles(given, place, (), kinds)
    return model


def _kinds(named, n_features):
    """Return kinds of explained columns in the order in which a model names them."""
    if named is None:
        return ()
    if isinstance(named, str):
        likelihoods = [named] * n_features
    else:
        likelihoods = [name for name, columns in named.items() for _ in named_columns(columns)]
    if len(likelihoods) != n_features:
        raise ValueError(f"likelihood={{...}} names {len(likelihoods)} columns: pass X.")
    return tuple(Kind(name, _LEVELS if name in LEVELLED else 0) for name in likelihoods)


def _random_rows(model, n_features, generator):
    """Return rows for models that cannot simulate: real, positive, counts, and binary."""
    width = n_features + model.columns_.width
    normal = torch.randn(_N_ROWS, width, generator=generator, dtype=torch.float64)
    kinds = normal, normal.exp(), (3 * normal.abs()).round(), (normal > 0).double()
    return tuple(model.with_given(model.explained(rows), normal) for rows in kinds)


def _simulate(model, n_features, generator):
    """Draw rows from the model at a typical theta; None if it cannot."""
    width = n_features + model.columns_.width
    like = torch.randn(_N_ROWS, width, generator=generator, dtype=torch.float64)
    given = (model.given_columns(like),) if "covariates" in model.columns_.given else ()
    try:
        model.check_data(like)
        model = model.adapted(like, like.new_ones(len(like)))
    except ValueError:
        pass  # these rows are invalid for the model: simulate without adapting it
    space = model.global_space(like)
    centre, _ = space.start(generator)
    theta = space.constrain(centre.to(like))
    seed = int(torch.randint(2**62, (), generator=generator))
    with seeded(seed), defaults_of(like):
        try:
            rows, _ = model.simulate(theta, _N_ROWS, n_features, *given)
        except NotImplementedError:
            return None
    return model.with_given(rows.to(torch.float64), like)
