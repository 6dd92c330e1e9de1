"""k-hat of Pareto-smoothed importance sampling: the tail of the importance weights of q."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from skavi._estimators.base import VariationalInference
from skavi._estimators.fitted_estimator import position_on
from skavi._platform.array_types import Seed, TableLike
from skavi._platform.forks_and_threads import guarded
from skavi._platform.html import html_table
from skavi._platform.optional_imports import require
from skavi._platform.random_state import private_state
from skavi.posterior._draws import FittedPosterior, check_draws

#: Below this k-hat the weights have a finite variance: weighted estimates work with any number of
#: draws (Vehtari et al. 2024).
GOOD = 0.5
#: Draws: with 100 the threshold 1 - 1 / log10(draws) is 0.5, as GOOD is.
_FEWEST_DRAWS = 100
#: Nats: log weights that vary by less are constant up to rounding, whose tail has no meaning.
_CONSTANT = 1e-5


@dataclass(frozen=True)
class PSISKHat:
    r"""Shape of the tail of p / q, which says whether importance sampling can correct q.

    Attributes
    ----------
    joint : float
        k-hat of :math:`p(\theta, z \mid X)` against :math:`q(\theta) \prod_n q(z_n)`, all rows at
        once. -inf where the weights vary by less than 1e-5 nats: q is the posterior.
    per_row : ndarray of shape (n_rows,)
        k-hat of each row's posterior against q(z_n), with theta and the other rows' latents at
        their means.
    n_draws : int
        Number of draws.
    threshold : float
        The smaller of :math:`1 - 1 / \log_{10} \mathrm{n\_draws}` and 0.7: above it, estimates
        weighted by p / q are unreliable at this number of draws.

    Notes
    -----
    It measures the *family*, not the solver: the best mean-field factor of a posterior with
    correlated latents often has k-hat > 0.7, and `joint` rises with the number of rows. For the
    convergence of the fit see ``converged_`` and ``suboptimality_``.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.diagnostics import psis_khat
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> khat = psis_khat(FactorizedVI(LinearModel()).fit(X), X, n_draws=1000, random_state=0)
    >>> khat.per_row.shape, round(khat.threshold, 3)
    ((3,), 0.667)
    """

    joint: float
    per_row: np.ndarray = field(repr=False)
    n_draws: int
    threshold: float

    @property
    def advice(self) -> str:
        """The meaning of the joint k-hat, and what to do, in a sentence or two."""
        if self.joint <= GOOD:
            return f"k-hat <= {GOOD}: q is close to the posterior; weighting its draws corrects it."
        if self.joint <= self.threshold:
            return (
                f"k-hat <= {self.threshold:.2g}: q is usable; weight its draws by p / q where "
                "means and sds matter."
            )
        return (
            f"k-hat > {self.threshold:.2g}: this family is too narrow for importance weights to "
            "mend. It does not mean that the fit did not converge: the best mean-field q often has "
            "a k-hat this high. Take sds from linear_response, or try family=FullNormal(), "
            "global_family=FullNormal() or another parametrisation of the model (centred or not), "
            "and run MCMC where the tails matter."
        )

    def _repr_html_(self):
        high = int((self.per_row > self.threshold).sum())
        rows = [
            ("joint k-hat", f"{self.joint:.2f}"),
            ("threshold", f"{self.threshold:.2f} at {self.n_draws} draws"),
            ("largest k-hat of a row", f"{self.per_row.max():.2f} (row {self.per_row.argmax()})"),
            ("rows above the threshold", f"{high} of {len(self.per_row)}"),
        ]
        return html_table("PSIS k-hat", (), rows, self.advice)


@guarded
def psis_khat(
    estimator: VariationalInference, X: TableLike, n_draws: int = 2000, random_state: Seed = None
) -> PSISKHat:
    """Measure how far a fit's q is from the posterior, through its importance weights.

    Parameters
    ----------
    estimator : FactorizedVI or AmortizedVI
        A fitted estimator.
    X : array-like of shape (n_samples, n_features)
        The rows it was fitted on, with unit weights.
    n_draws : int, default=2000
        Draws from q, at least 100; with more, k-hat varies less.
    random_state : int, RandomState or None, default=None
        Seed or generator.

    Returns
    -------
    PSISKHat

    Raises
    ------
    ImportError
        If arviz-stats is not installed: ``pip install "skavi[arviz]"``.
    ValueError
        If n_draws is not an integer >= 100.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.

    Notes
    -----
    It can show that q's tails are too thin, or that q misses mass near its own draws. It cannot
    show a mode that no draw of q reaches, nor *which* moment is wrong (a high k-hat is compatible
    with good means), and it cannot distinguish a poor family from an unfinished fit. The smoothing
    is that of arviz-stats. For a model that gives one log joint for all rows, `per_row` needs one
    evaluation per row and draw. Source: Yao, Vehtari, Simpson & Gelman (2018), "Yes, but did it
    work?",
    algorithm 1; threshold: Vehtari et al. (2024), "Pareto smoothed importance sampling", section 3.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.diagnostics import psis_khat
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> khat = psis_khat(FactorizedVI(LinearModel()).fit(X), X, random_state=0)
    >>> khat.joint < khat.threshold
    True
    """
    require("arviz_stats", "skavi[arviz]")
    check_draws(n_draws, _FEWEST_DRAWS)
    fitted, state = FittedPosterior.of(position_on(estimator, X)), private_state(random_state)
    joint = np.array([float(d.log_joint - d.log_q) for d in fitted.draws(n_draws, state)])
    rows = _row_weights(fitted, n_draws, state)
    return PSISKHat(
        joint=_khat(joint),
        per_row=np.array([_khat(column) for column in rows.T]),
        n_draws=int(n_draws),
        threshold=threshold_of(n_draws),
    )


def _khat(log_weights):
    return -math.inf if np.ptp(log_weights) < _CONSTANT else smoothed_weights(log_weights)[1]


def threshold_of(n_draws) -> float:
    """Return the k-hat above which estimates weighted by so many draws are unreliable."""
    return min(1 - 1 / math.log10(n_draws), 0.7)


def row_khat(log_weights) -> np.ndarray:
    """Return the k-hat of each column of log weights (n_draws, n_rows); -inf where constant."""
    return np.array([_khat(column) for column in log_weights.cpu().numpy().T])


def smoothed_weights(log_weights):
    """Return Pareto-smoothed weights, whose sum is 1, and k-hat.

    Parameters
    ----------
    log_weights : ndarray of shape (n_draws,)
    """
    library = require("arviz_stats.base", "skavi[arviz]").array_stats
    # The library's function weighs by exp(-x): it is made for log likelihoods of points left out.
    with np.errstate(divide="ignore", invalid="ignore"):  # where a few draws carry all weight
        smoothed, khat = library.psislw(-log_weights)
    if not (np.isfinite(khat) and np.isfinite(smoothed.max())):
        smoothed, khat = log_weights, math.inf
    weights = np.exp(smoothed - np.max(smoothed))
    return weights / weights.sum(), float(khat)


def _row_weights(fitted, n_draws, state):
    """Return log weights of each row's factor, all else at its mean, shape (n_draws, n_rows).

    Rows that share no term are drawn together: all rows, every other row of a chain, or one at a
    time.
    """
    n, coupling = len(fitted.X), fitted.model.coupling
    n_colours = coupling.n_colours(n)
    logs = np.zeros((n_draws, n))
    if not fitted.factors.mean.shape[1]:
        return logs
    still = torch.zeros(len(fitted.q_theta.mean), dtype=torch.float64)
    for first in range(min(n_colours, n)):
        index = torch.arange(first, n, n_colours)
        noises = (_noise_of(fitted.factors, index, state) for _ in range(n_draws))
        for s, draw in enumerate(fitted.at_each((local, still) for local in noises)):
            terms = coupling.shares(draw.log_terms, index)
            by_row = draw.log_terms.dim() > 0
            own = coupling.shares(draw.log_q_rows, index) if by_row else draw.log_q_rows[index]
            logs[s, index.numpy()] = (terms - own).numpy()
    return logs


def _noise_of(factors, index, state):
    """Return noise that moves only some rows, each given all others at their means."""
    local = torch.zeros_like(factors.mean)
    local[index] = torch.as_tensor(state.standard_normal((len(index), local.shape[1])))
    return factors.alone(local)
