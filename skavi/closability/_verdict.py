"""Can amortized VI match factorized VI for a model at all? A verdict from the log joint alone.

The ideal factor q*(z_n) is proportional to exp E[log p(theta, z, X)] as a function of z_n, so a
function of a window of rows reaches it for every data set iff the score of z_n, d log p / d z_n,
(1) does not move with any other latent, (2) moves only with the rows of X in a window around n and
(3) is the same function for every n (Margossian & Blei 2024, section 3).
"""

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor

from skavi import models
from skavi._data.coupling import Units
from skavi._data.grouped_rows import GroupedRows
from skavi._platform.array_types import Seed, TableLike
from skavi._platform.forks_and_threads import guarded
from skavi._platform.html import html_table
from skavi._platform.random_state import drawn_seed, private_state
from skavi.closability._groups import order_dependence
from skavi.closability._probe import TOLERANCE, Probe, probe
from skavi.models import LatentVariableModel

#: Rows of the first probe: it sees 10 rows either way; the long probe sees those farther off.
_N_SHORT = 20
#: Random points: a dependence may vanish at one; with 3, no false verdict over 20 seeds.
_N_POINTS = 3


class AmortizationWarning(UserWarning):
    """The inference function cannot give every row its best factor.

    `AmortizedVI.fit` warns of it once a fit: when the function reads fewer rows than the model's
    factors depend on (remedy: ``context=``), or when no function of a window closes the gap
    (remedy: `FactorizedVI`). Silence it with ``warnings.simplefilter("ignore",
    skavi.diagnostics.AmortizationWarning)``.

    Examples
    --------
    >>> import warnings
    >>> from skavi import AmortizedVI
    >>> from skavi.diagnostics import AmortizationWarning
    >>> from skavi.inference_functions import Polynomial
    >>> from skavi.models import SawTimeSeries
    >>> X = [[0.0], [2.0], [3.5], [4.0], [6.0], [5.5]]
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always", AmortizationWarning)
    ...     blind = AmortizedVI(SawTimeSeries(), Polynomial(1, context=(0, 0))).fit(X)
    >>> [warning.category.__name__ for warning in caught]
    ['AmortizationWarning']
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

    Examples
    --------
    >>> from skavi import can_close_gap
    >>> from skavi.models import LinearModel, LocalLevel
    >>> can_close_gap(LinearModel(), random_state=0).evidence.latent_coupling
    0.0
    >>> can_close_gap(LocalLevel(), random_state=0).evidence.latent_coupling > 0.01
    True
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

    Examples
    --------
    >>> from skavi import can_close_gap
    >>> from skavi.models import SawTimeSeries
    >>> verdict = can_close_gap(SawTimeSeries(), random_state=0)
    >>> verdict.closable, verdict.context
    (True, (1, 0))
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


@guarded
def can_close_gap(
    model: LatentVariableModel,
    X: TableLike | None = None,
    n_features: int = 1,
    random_state: Seed = None,
) -> GapVerdict:
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
    model.check_roles()
    if isinstance(X, Tensor | GroupedRows):  # rows as a fit has them
        n_columns = model.n_explained(X)
    else:
        n_given = sum(map(len, model.named_columns().values()))
        shape: tuple[int, ...] = () if X is None else np.shape(cast("np.ndarray", X))
        n_columns = n_features if X is None else shape[-1] - n_given
    model.check_written(n_columns)
    if not model.count_latents(n_columns):
        return _without_latents()
    seed = drawn_seed(private_state(random_state))
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model.coupling, Units):
        return _of_groups(*order_dependence(model, X, n_features, generator))
    long = probe(model, X, n_features, generator)
    verdict = _measured(long.first(_N_SHORT))
    coupled = verdict.evidence.latent_coupling > TOLERANCE
    throughout = not coupled and _window(verdict.evidence.row_influence) is None
    if throughout or (verdict.closable and long.sees_beyond(verdict.context)):
        return _measured(long)
    return verdict


def ideal_context(model, X: Tensor) -> tuple[int, int] | str | None:
    """Return the window that closes a model's gap: as its class declares, or measured on X.

    Only shipped classes are taken at their word: a subclass may have written the density anew.
    "unknown" is returned where X gives nothing to measure on.
    """
    shipped = type(model) in vars(models).values()
    if shipped and model.ideal_context != "unknown":
        return model.ideal_context
    try:
        return can_close_gap(model, X.cpu(), random_state=0).context
    except ValueError:
        return "unknown"


def _measured(rows: Probe) -> GapVerdict:
    coupling, influence, position = 0.0, np.zeros((rows.n, rows.n)), 0.0
    for _ in range(_N_POINTS):
        rows.new_point()
        coupling = max(coupling, rows.latent_coupling())
        influence = np.maximum(influence, rows.row_influence())
        window = _window(influence)
        if window is not None:
            position = max(position, rows.position_dependence(window))
    return _verdict(GapEvidence(coupling, influence, position, TOLERANCE))


def _without_latents() -> GapVerdict:
    reason = (
        "There are no latents (n_latents is 0), so that no row has a factor: amortized and "
        "factorized VI are the same fit."
    )
    return GapVerdict(True, (0, 0), reason, GapEvidence(0.0, np.zeros((0, 0)), 0.0, TOLERANCE))


def _of_groups(within: float, apart: float) -> GapVerdict:
    """Return the verdict for groups, whose functions read the set of a group's rows."""
    evidence = GapEvidence(0.0, np.zeros((0, 0)), max(within, apart), TOLERANCE)
    if within > TOLERANCE:
        reason = (
            "The score of a group's latents moves when its rows change places (relative effect "
            f"{within:.1e}): its best factor depends on their order, which a function of the set "
            "of the group's rows does not see."
        )
        return GapVerdict(False, None, reason, evidence)
    if apart > TOLERANCE:
        reason = (
            "The score of a group's latents moves when whole groups change places (relative "
            f"effect {apart:.1e}): groups that look alike have different best factors, so one "
            "shared function cannot give both."
        )
        return GapVerdict(False, None, reason, evidence)
    reason = (
        "Given the globals, the score of a group's latents depends on the set of the group's rows "
        "alone, in any order, by the same function for every group: structurally, a rich enough "
        "function of that set closes the gap (whether a given one is rich enough, "
        "amortization_gap measures)."
    )
    return GapVerdict(True, (0, 0), reason, evidence)


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
    to, source = np.nonzero(influence > TOLERANCE)
    before = int(max((to - source).max(initial=0), 0))
    after = int(max((source - to).max(initial=0), 0))
    return None if before + after >= len(influence) // 2 else (before, after)
