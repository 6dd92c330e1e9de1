"""Can amortized VI match factorized VI for a model at all? A verdict from the log joint alone.

The ideal factor q*(z_n) is proportional to exp E[log p(theta, z, X)] as a function of z_n, so a
function of a window of rows reaches it for every data set iff the score of z_n, d log p / d z_n,
(1) does not move with any other latent, (2) moves only with the rows of X in a window around n and
(3) is the same function for every n (Margossian & Blei 2024, section 3).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from skavi.distributions import defaults_of
from skavi.families import DiagonalNormal
from skavi.models import LatentVariableModel
from skavi.objective import Objective

_N_ROWS = 20
_FEWEST_ROWS = 6
_N_POINTS = 3
_TOLERANCE = 1e-9
_SPREADS = (1.0, 0.3, 0.03)


class AmortizationWarning(UserWarning):
    """The inference function cannot give every row its best factor."""


@dataclass(frozen=True)
class GapEvidence:
    """What was measured, relative to the largest entry of the score's derivatives.

    Attributes
    ----------
    latent_coupling : float
        Largest effect of another row's latent on a row's score; 0 where condition (1) holds.
    row_influence : ndarray of shape (n_rows, n_rows)
        Effect of row m of X (column) on the score of row n (row); condition (2).
    position_dependence : float
        Largest change of a row's score when the series is moved along; condition (3).
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


def can_close_gap(model, X=None, n_features=1, random_state=None) -> GapVerdict:
    """Decide from a model's log joint whether amortized VI can match factorized VI.

    Parameters
    ----------
    model : LatentVariableModel
        Any model, also one given only by ``log_joint``.
    X : array-like of shape (n_samples, n_features), default=None
        Rows to probe with (the first 20 are used, at least 6 are needed). None: rows are simulated
        from the model, or random for a model that cannot simulate.
    n_features : int, default=1
        Number of columns of simulated rows.
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
        If X is too short, or the log joint is not finite at any point tried.

    Notes
    -----
    Scores are differentiated automatically in the latents; rows of X are exchanged for others,
    which also sees what no derivative shows (counts, indices). Source: Margossian & Blei (2024),
    sections 3 and 4.

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
        raise TypeError(f"model must be a LatentVariableModel, got {type(model).__name__}.")
    model.check()
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    generator = torch.Generator().manual_seed(seed)
    probe = _Probe(model, X, n_features, generator)
    coupling, influence, position = 0.0, 0.0, 0.0
    for point in range(_N_POINTS):
        probe.new_point(point)
        coupling = max(coupling, probe.latent_coupling())
        influence = np.maximum(influence, probe.row_influence())
        position = max(position, probe.position_dependence(influence))
    return _verdict(GapEvidence(coupling, influence, position, _TOLERANCE))


def ideal_context(model, X: Tensor) -> tuple[int, int] | None | str:
    """Return the window that closes a model's gap: as its class declares, or measured on X.

    Declared structure counts only as long as nobody has written out the density anew. "unknown" is
    returned where X is too short to measure on.
    """
    written_out = any(
        not getattr(type(model), name).__module__.startswith("skavi.")
        for name in ("log_joint", "log_local", "log_terms", "prior_of_rows")
        if hasattr(model, name)
    )
    if model.ideal_context != "unknown" and not written_out:
        return model.ideal_context
    if len(X) < _FEWEST_ROWS:
        return "unknown"
    return can_close_gap(model, X.cpu().numpy(), random_state=0).context


def _verdict(evidence: GapEvidence) -> GapVerdict:
    window = _window(evidence.row_influence > evidence.tolerance)
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
        "function for every row: a rich enough inference function closes the gap."
    )
    return GapVerdict(True, window, reason, evidence)


def _window(moves: np.ndarray) -> tuple[int, int] | None:
    """Smallest (before, after) that covers every influence; None if it reaches half the rows."""
    to, source = np.nonzero(moves)
    before = int(max((to - source).max(initial=0), 0))
    after = int(max((source - to).max(initial=0), 0))
    return None if before + after >= len(moves) // 2 else (before, after)


class _Probe:
    """A log joint at random points: scores of all rows, and what moves them."""

    def __init__(self, model, X, n_features, generator):
        self.generator = generator
        self.model, self.X = _probe_rows(model, X, n_features, generator)
        self.n = len(self.X)
        family = DiagonalNormal()
        n_latents = self.model.n_latents(self.X.shape[1])
        space = self.model.global_space(self.X)
        self.objective = Objective(self.model, space, family, family, n_latents)
        self.centre, self.spread = (t.to(self.X) for t in space.start(generator))

    def new_point(self, attempt):
        """Draw theta and z until the scores are finite there."""
        for spread in _SPREADS:
            noise = self._randn(self.objective.space.size)
            self.u = self.centre + spread * self.spread.clamp_max(3.0) * noise
            theta = self.objective.space.constrain(self.u)
            centre, sd = self.model.initial_locals(theta, self.X)
            sd = torch.nan_to_num(sd, nan=1.0)
            self.z = torch.nan_to_num(centre) + spread * sd * self._randn(*centre.shape)
            self.other = self.X[torch.randperm(self.n, generator=self.generator)]
            scores = self.score(self.z, self.X)
            if bool(torch.isfinite(scores).all()):
                self.scale = self._curvature_scale(scores)
                return
        raise ValueError(
            f"{type(self.model).__name__}'s log joint has no finite score at any point tried: pass "
            "rows X that lie in the support of the likelihood."
        )

    def _randn(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def log_joint(self, z, X):
        theta = self.objective.space.constrain(self.u)
        with defaults_of(z):
            return self.model.log_terms(theta, z, X).sum()

    def score(self, z: Tensor, X: Tensor) -> Tensor:
        """d log p / d z, shape (n_rows, n_latents)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            value = self.log_joint(z, X)
            if not value.requires_grad:
                return torch.zeros_like(z)
            (gradient,) = torch.autograd.grad(value, z, allow_unused=True)
        return torch.zeros_like(z) if gradient is None else gradient

    def _curvature_scale(self, scores):
        """What an effect on the scores is measured against: rounding is relative to the largest."""
        moved = self.score(self.z + 0.1 * self._randn(*self.z.shape), self.X)
        return float(torch.maximum(scores.abs().amax(), moved.abs().amax()).clamp_min(1e-300))

    def latent_coupling(self):
        """Move one row's latent at a time; return the largest change of another row's score.

        Differences at a finite distance, unlike second derivatives, cannot vanish at a point by
        accident and need no second derivative of the user's code.
        """
        base, worst = self.score(self.z, self.X), 0.0
        for m in range(self.n):
            z = self.z.clone()
            z[m] += self._randn(self.z.shape[1])
            change = (self.score(z, self.X) - base).abs()
            change[m] = 0.0
            worst = max(worst, float(torch.nan_to_num(change).amax()) / self.scale)
        return worst

    def row_influence(self):
        """Exchange one row of X at a time; return the change of every row's score, (n, m)."""
        base = self.score(self.z, self.X)
        influence = np.zeros((self.n, self.n))
        for m in range(self.n):
            X = self.X.clone()
            X[m] = self.other[m]
            change = (self.score(self.z, X) - base).abs().amax(1)
            influence[:, m] = torch.nan_to_num(change, posinf=0.0).numpy() / self.scale
        return influence

    def position_dependence(self, influence):
        """Move series and latents along together; compare scores of rows away from the ends."""
        window = _window(influence > _TOLERANCE)
        if window is None:
            return 0.0
        before, after = window
        base, worst = self.score(self.z, self.X), 0.0
        for shift in (1, 2, self.n // 3):
            moved = self.score(self.z.roll(shift, 0), self.X.roll(shift, 0))
            inner = torch.arange(before, self.n - after - shift)
            change = (moved[inner + shift] - base[inner]).abs()
            worst = max(worst, float(torch.nan_to_num(change).amax()) / self.scale)
        return worst


def _probe_rows(model, X, n_features, generator):
    """Return the model adapted to the probe rows, and the rows, as float64."""
    if X is not None:
        rows = torch.as_tensor(np.array(X, dtype=np.float64))
        if rows.dim() != 2 or len(rows) < _FEWEST_ROWS:
            raise ValueError(f"X has shape {tuple(rows.shape)}: can_close_gap needs 6 rows or more.")
        rows = rows[:_N_ROWS]
        model.check_data(rows)
        return model.adapted(rows, rows.new_ones(len(rows))), rows
    random = torch.randn(_N_ROWS, n_features, generator=generator, dtype=torch.float64)
    try:
        model.check_data(random)
        model = model.adapted(random, random.new_ones(len(random)))
    except ValueError:
        pass  # the model asks for other columns: it must know how to simulate them
    try:
        rows = _simulated(model, random, generator)
    except NotImplementedError:
        return model, random
    return model.adapted(rows, rows.new_ones(len(rows))), rows


def _simulated(model, like, generator):
    space = model.global_space(like)
    centre, _ = space.start(generator)
    theta = space.constrain(centre.to(like))
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]), defaults_of(like):
        torch.manual_seed(seed)
        rows, _ = model.simulate(theta, _N_ROWS, like.shape[1])
    return rows.to(torch.float64)
