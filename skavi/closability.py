"""Can amortized VI match factorized VI for a model at all? A verdict from the log joint alone.

The ideal factor q*(z_n) is proportional to exp E[log p(theta, z, X)] as a function of z_n, so a
function of a window of rows reaches it for every data set iff the score of z_n, d log p / d z_n,
(1) does not move with any other latent, (2) moves only with the rows of X in a window around n and
(3) is the same function for every n (Margossian & Blei 2024, section 3).
"""

from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
import torch
from sklearn.utils import check_array
from torch import Tensor

from skavi._concurrency import seeded
from skavi._html import html_table
from skavi._random import private_state
from skavi.distributions import defaults_of
from skavi.families import DiagonalNormal
from skavi.models import LatentVariableModel
from skavi.objective import Objective

_N_SHORT, _N_LONG = 20, 120
_FEWEST_ROWS = 2
_N_POINTS = 3
_N_TARGETS = 8
_TOLERANCE = 1e-8
_SHARED_ROUNDING = 1e-4
_SPREADS = (1.0, 0.3, 0.03)


class AmortizationWarning(UserWarning):
    """The inference function cannot give every row its best factor.

    `AmortizedVI.fit` warns of it once a fit: when the function reads fewer rows than the model's
    factors depend on (remedy: ``context=``), or when no function of a window closes the gap
    (remedy: `FactorizedVI`). Silence it with ``warnings.simplefilter("ignore",
    skavi.diagnostics.AmortizationWarning)``.
    """


@dataclass(frozen=True)
class GapEvidence:
    """What was measured, each effect on a row's score relative to the size of that score.

    Attributes
    ----------
    latent_coupling : float
        Largest effect of another row's latent on a row's score; 0 where condition (1) holds.
    row_influence : ndarray of shape (n_rows, n_rows)
        Effect of probe row m of X (column) on the score of row n (row); condition (2).
    position_dependence : float
        Largest change of a row's score when the series is moved along; condition (3). Rows whose
        window reaches over an end of the series are not compared.
    tolerance : float
        Effects below this count as rounding.
    """

    latent_coupling: float
    row_influence: np.ndarray = field(repr=False)
    position_dependence: float
    tolerance: float


@dataclass(frozen=True)
class GapVerdict:
    """Whether some inference function can close the amortization gap.

    Attributes
    ----------
    closable : bool
        A structural verdict: whether a function of a window of rows exists that gives every row
        its best factor. Whether a given network is rich enough is what `amortization_gap` measures.
    context : (int, int) or None
        Rows (before, after) which that function must read; None if no window will do.
    reason : str
        Why, in a sentence.
    evidence : GapEvidence
        What was measured.
    """

    closable: bool
    context: tuple[int, int] | None
    reason: str
    evidence: GapEvidence

    def _repr_html_(self):
        measured = self.evidence
        rows = [
            ("rows to read (before, after)", self.context or "no window will do"),
            ("effect of other rows' latents", f"{measured.latent_coupling:.1e}"),
            ("effect of a row's place", f"{measured.position_dependence:.1e}"),
            ("taken for rounding below", f"{measured.tolerance:.0e}"),
        ]
        verdict = "can be closed" if self.closable else "cannot be closed"
        return html_table(f"The amortization gap {verdict}", (), rows, self.reason)


def can_close_gap(model, X=None, n_features=1, random_state=None) -> GapVerdict:
    """Decide from a model's log joint whether amortized VI can match factorized VI.

    Parameters
    ----------
    model : LatentVariableModel
        Any model, also one given only by ``log_joint``.
    X : array-like of shape (n_samples, n_features), default=None
        Rows to probe with, at least 2 and best in the hundreds; the first 120 are used. None: rows
        are simulated from the model, or random for a model that cannot simulate.
    n_features : int, default=1
        Number of columns of simulated rows; X's own if X is given.
    random_state : int, RandomState or None, default=None
        For the points at which the log joint is probed.

    Returns
    -------
    GapVerdict

    Raises
    ------
    TypeError
        If `model` is not a `LatentVariableModel`.
    ValueError
        If X is too short or not finite, or the log joint is not finite at any point tried.

    Notes
    -----
    Scores are differentiated automatically in the latents; rows of X are exchanged for others,
    which also sees what no derivative shows (counts, indices). Latents and rows up to 10 apart are
    told apart first, then rows up to 60 apart if something farther off turns out to matter. Only
    what happens at the points tried is seen: a dependence that starts where neither X nor
    simulated rows reach is not. Source: Margossian & Blei (2024), sections 3 and 4.

    Examples
    --------
    >>> from skavi import can_close_gap
    >>> from skavi.models import LocalLevel, SawTimeSeries
    >>> can_close_gap(SawTimeSeries(), random_state=0).context
    (1, 0)
    >>> can_close_gap(LocalLevel(), random_state=0).closable
    False
    """
    if not isinstance(model, LatentVariableModel):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model must be a LatentVariableModel, got {got}.")
    model.check()
    seed = int(private_state(random_state).randint(2**31 - 1))
    generator = torch.Generator().manual_seed(seed)
    long = _probe(model, X, n_features, generator)
    verdict = _measured(long.first(_N_SHORT))
    coupled = verdict.evidence.latent_coupling > _TOLERANCE
    throughout = not coupled and _window(verdict.evidence.row_influence) is None
    if throughout or (verdict.closable and long.sees_beyond(verdict.context)):
        return _measured(long)
    return verdict


def ideal_context(model, X: Tensor) -> tuple[int, int] | str | None:
    """Return the window that closes a model's gap: as its class declares, or measured on X.

    Only shipped classes are taken at their word: a subclass may have written the density anew.
    "unknown" is returned where X gives nothing to measure on.
    """
    shipped = type(model).__module__.startswith("skavi.")
    if shipped and model.ideal_context != "unknown":
        return model.ideal_context
    try:
        return can_close_gap(model, X.cpu().numpy(), random_state=0).context
    except ValueError:
        return "unknown"


def _measured(probe) -> GapVerdict:
    coupling, influence, position = 0.0, np.zeros((probe.n, probe.n)), 0.0
    for _ in range(_N_POINTS):
        probe.new_point()
        coupling = max(coupling, probe.latent_coupling())
        influence = np.maximum(influence, probe.row_influence())
        window = _window(influence)
        if window is not None:
            position = max(position, probe.position_dependence(window))
    return _verdict(GapEvidence(coupling, influence, position, _TOLERANCE))


def _verdict(evidence: GapEvidence) -> GapVerdict:
    window = _window(evidence.row_influence)
    if evidence.latent_coupling > evidence.tolerance:
        reason = (
            "The score of a row's latent moves with other rows' latents (relative effect "
            f"{evidence.latent_coupling:.1e}): its best factor depends on its neighbours' factors, "
            "so no function of a window of rows gives it."
        )
        return GapVerdict(False, None, reason, evidence)
    if window is None:
        reason = (
            "The score of a row's latent moves with rows of X throughout the data, not only with "
            "those in a window around it, so no function of a window gives its best factor."
        )
        return GapVerdict(False, None, reason, evidence)
    if evidence.position_dependence > evidence.tolerance:
        reason = (
            "The score of a row's latent is not the same function for every row (relative "
            f"difference {evidence.position_dependence:.1e}): rows that look alike have different "
            "best factors, so one shared function cannot give both."
        )
        return GapVerdict(False, None, reason, evidence)
    before, after = window
    reads = "the row itself" if window == (0, 0) else f"{before} rows before and {after} after it"
    reason = (
        f"Given the globals, the score of a row's latent depends on {reads} alone, by the same "
        "function for every row: structurally, a rich enough inference function closes the gap "
        "(whether a given one is rich enough, amortization_gap measures)."
    )
    return GapVerdict(True, window, reason, evidence)


def _window(influence: np.ndarray) -> tuple[int, int] | None:
    """Smallest (before, after) that covers every influence; None if it reaches half the rows."""
    to, source = np.nonzero(influence > _TOLERANCE)
    before = int(max((to - source).max(initial=0), 0))
    after = int(max((source - to).max(initial=0), 0))
    return None if before + after >= len(influence) // 2 else (before, after)


class _Probe:
    """A log joint at random points: scores of all rows, and what moves them."""

    def __init__(self, model, X, spare, generator):
        self.model, self.X, self.spare, self.generator = model, X, spare, generator
        self.n = len(X)
        family = DiagonalNormal()
        space = model.global_space(X)
        self.objective = Objective(model, space, family, family, model.n_latents(X.shape[1]))
        self.centre, self.spread = (t.to(X) for t in space.start(generator))
        self.new_point()

    def first(self, n_rows):
        """Return the probe of the first rows alone."""
        return _Probe(self.model, self.X[:n_rows], self.spare, self.generator)

    def new_point(self):
        """Draw theta and z until the scores are finite there."""
        for spread in _SPREADS:
            noise = self._randn(self.objective.space.size)
            u = self.centre + spread * self.spread.clamp_max(3.0) * noise
            self.theta = self.objective.space.constrain(u)
            centre, sd = self.model.initial_locals(self.theta, self.X)
            self.sd = torch.nan_to_num(sd, nan=1.0)
            self.z = torch.nan_to_num(centre) + spread * self.sd * self._randn(*centre.shape)
            self.base = self.score(self.z, self.X)
            if bool(torch.isfinite(self.base).all()):
                moved = torch.nan_to_num(self.score(self._moved(self.z, 0.1), self.X), posinf=0.0)
                size = torch.maximum(self.base.abs(), moved.abs()).amax(1)
                # Where rows pass through one sum, the largest score's rounding reaches them all.
                self.scale = (size + _SHARED_ROUNDING * size.amax()).clamp_min(1e-300)
                self.others = self._others()
                return
        raise ValueError(
            f"{type(self.model).__name__}'s log joint has no finite score at any point tried: pass "
            "rows X that lie in the support of the likelihood."
        )

    def _randn(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def _moved(self, z, factor):
        return z + factor * self.sd * self._randn(*z.shape)

    def _others(self):
        """Return for each row one that differs from it: an equal one would show nothing."""
        differs = (self.X.unsqueeze(1) != self.spare).any(-1).double()
        alone = differs.sum(1, keepdim=True) == 0
        choice = torch.multinomial(differs + alone, 1, generator=self.generator)[:, 0]
        return self.spare[choice]

    def log_joint(self, z, X):
        with defaults_of(z):
            return self.model.log_terms(self.theta, z, X).sum()

    def score(self, z: Tensor, X: Tensor) -> Tensor:
        """d log p / d z, shape (n_rows, n_latents)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            value = self.log_joint(z, X)
            if not value.requires_grad:
                return torch.zeros_like(z)
            (gradient,) = torch.autograd.grad(value, z, allow_unused=True)
        return torch.zeros_like(z) if gradient is None else gradient

    def change(self, score, rows=slice(None)):
        """Return how far the rows' scores are from the point's, relative to their size."""
        change = (score - self.base)[rows].abs().amax(1) / self.scale[rows]
        return torch.nan_to_num(change, nan=0.0, posinf=0.0)

    def latent_coupling(self):
        """Move one row's latent at a time; return the largest change of another row's score.

        Differences at a finite distance, unlike second derivatives, cannot vanish at a point by
        accident and need no second derivative of the user's code.
        """
        worst = 0.0
        for m in range(self.n):
            elsewhere = torch.arange(self.n) != m
            for factor in (1.0, 0.1, 0.01):  # shorter where the density overflows
                z = self.z.clone()
                z[m] = self._moved(self.z, factor)[m]
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
        """Move series and latents along together; compare scores of rows away from the ends."""
        before, after = window
        worst = 0.0
        for shift in (1, 2, self.n // 3):
            moved = self.score(self.z.roll(shift, 0), self.X.roll(shift, 0))
            inner = torch.arange(before, self.n - after - shift)
            change = self.change(moved.roll(-shift, 0), inner)
            worst = max(worst, float(change.amax()))
        return worst

    def sees_beyond(self, window):
        """Say whether a row's score moves with what lies outside `window`, or with its place.

        All other latents and all rows outside the window are moved at once, for a few rows.
        """
        before, after = window
        worst = self.position_dependence(window)
        for n in torch.linspace(0, self.n - 1, _N_TARGETS).long().tolist():
            inside = slice(max(n - before, 0), n + after + 1)
            X, z = self.others.clone(), self._moved(self.z, 0.5)
            X[inside], z[n] = self.X[inside], self.z[n]
            worst = max(worst, float(self.change(self.score(z, X), slice(n, n + 1))))
        return worst > _TOLERANCE


def _probe(model, X, n_features, generator) -> _Probe:
    """Return a long probe of the model, adapted to X's rows, simulated ones or random ones."""
    if X is not None:
        finite = "allow-nan" if model.allows_missing else True
        rows = check_array(
            X, dtype=np.float64, ensure_all_finite=finite, ensure_min_samples=_FEWEST_ROWS
        )
        rows = torch.tensor(rows[:_N_LONG])
        model.check_data(rows)
        model = model.adapted(rows, rows.new_ones(len(rows)))
        short = max(_N_LONG - len(rows), 0)  # too few: some once more, in any order
        again = torch.randint(len(rows), (short,), generator=generator)
        return _Probe(model, torch.cat([rows, rows[again]]), _spare(rows, generator), generator)
    if not isinstance(n_features, Integral) or n_features < 1:
        raise ValueError(f"n_features={n_features!r} must be an integer >= 1.")
    simulated = _simulated(model, n_features, generator)
    failure = ValueError(f"no rows of {n_features} columns to probe with")
    for rows in _random_rows(n_features, generator) if simulated is None else [simulated]:
        try:
            model.check_data(rows)
            adapted = model.adapted(rows, rows.new_ones(len(rows)))
            return _Probe(adapted, rows, rows, generator)
        except ValueError as error:  # out of the support, says the model or torch
            failure = error
    raise failure


def _spare(rows, generator):
    """Return rows to exchange others for: those of X, or any if X's are all equal."""
    if bool((rows == rows[0]).all()):
        return rows + torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    return rows


def _random_rows(n_features, generator):
    """Rows for models that cannot simulate: of any sign, positive, counts, zeros and ones."""
    normal = torch.randn(_N_LONG, n_features, generator=generator, dtype=torch.float64)
    return normal, normal.exp(), (3 * normal.abs()).round(), (normal > 0).double()


def _simulated(model, n_features, generator):
    """Draw rows from the model at a typical theta; None if it cannot."""
    like = torch.randn(_N_LONG, n_features, generator=generator, dtype=torch.float64)
    try:
        model.check_data(like)
        model = model.adapted(like, like.new_ones(len(like)))
    except ValueError:
        pass  # the model asks for other rows: it must know how to simulate them as it is
    space = model.global_space(like)
    centre, _ = space.start(generator)
    theta = space.constrain(centre.to(like))
    seed = int(torch.randint(2**62, (), generator=generator))
    with seeded(seed), defaults_of(like):
        try:
            rows, _ = model.simulate(theta, _N_LONG, n_features)
        except NotImplementedError:
            return None
    return rows.to(torch.float64)
