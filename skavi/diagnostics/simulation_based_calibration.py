"""Simulation-based calibration: the ranks of true values under q."""

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import ndtr
from scipy.stats import chisquare, kstest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from skavi._platform.forks_and_threads import guarded
from skavi._platform.html import html_table
from skavi._platform.optional_imports import require
from skavi._platform.random_state import drawn_seed, private_state
from skavi.distributions import Flat, defaults_of, innermost
from skavi.models import LatentVariableModel

#: Simulations: with fewer the tests of uniform ranks have little power. Not measured: order of
#: magnitude.
_FEWEST = 20
#: Tables that are drawn for one simulation, until one has all levels of its columns.
_TRIES = 30
#: p-value: an exact q gives a false alarm once in a hundred.
_ALARM = 0.01
#: Relative: two evaluations of one prior differ by rounding (1e-16), two priors by far more.
_SAME = 1e-9
#: Sd of a uniform number between 0 and 1.
_UNIFORM_SD = np.sqrt(1 / 12)


@dataclass(frozen=True)
class Calibration:
    """Ranks of simulated true values under the q fitted to their data: uniform if q is calibrated.

    Attributes
    ----------
    ranks : dict of str to ndarray of shape (n_simulations, ...)
        q's probability of a value below the true one, in [0, 1]: for each global (on the scale
        where q is normal) by name, and for the latents of one row a simulation as "z"
        (n_simulations, n_latents).
    n_unconverged : int
        Fits that stopped before they had converged; their ranks are included.

    Examples
    --------
    >>> import numpy as np
    >>> from skavi.diagnostics import Calibration
    >>> ranks = np.random.default_rng(0).uniform(size=(200, 1))  # as a calibrated q has them
    >>> report = Calibration({"z": ranks}, n_unconverged=0)
    >>> report.n_simulations, report.n_bins, report.p_value > 0.01
    (200, 20, True)
    >>> Calibration({"z": 0.5 * ranks}, n_unconverged=0).p_value < 1e-6  # q sits too high
    True
    """

    ranks: dict[str, np.ndarray] = field(repr=False)
    n_unconverged: int

    @property
    def n_simulations(self) -> int:
        """Number of simulated data sets."""
        return len(next(iter(self.ranks.values())))

    @property
    def n_bins(self) -> int:
        """Bins of the rank histograms: 10 simulations a bin, at most 20 bins."""
        return min(max(self.n_simulations // 10, 2), 20)

    @property
    def p_values(self) -> dict[str, np.ndarray]:
        """Kolmogorov-Smirnov p-values of uniform ranks, one for each number."""
        return self._test(lambda ranks: kstest(ranks, "uniform").pvalue)

    @property
    def chi_square_p_values(self) -> dict[str, np.ndarray]:
        """Pearson's chi-square p-values of uniform rank histograms, one for each number."""
        return self._test(lambda ranks: chisquare(self.histogram(ranks)).pvalue)

    @property
    def p_value(self) -> float:
        """Smallest of all p-values times their number (Bonferroni), at most 1."""
        every = [*self.p_values.values(), *self.chi_square_p_values.values()]
        flat = np.concatenate([np.ravel(values) for values in every])
        return float(min(1.0, len(flat) * flat.min()))

    def histogram(self, ranks) -> np.ndarray:
        """Count ranks (n_simulations,) in `n_bins` equal bins."""
        return np.histogram(ranks, bins=self.n_bins, range=(0, 1))[0]

    def _test(self, test):
        found = {}
        for name, ranks in self.ranks.items():
            columns = ranks.reshape(len(ranks), -1).T
            found[name] = np.array([test(each) for each in columns]).reshape(ranks.shape[1:])
        return found

    @property
    def advice(self) -> str:
        """The meaning of the ranks, in a sentence or two."""
        if self.p_value > _ALARM:
            return (
                f"No miscalibration seen in {self.n_simulations} simulations (p = "
                f"{self.p_value:.2g}): smaller ones would need more of them."
            )
        name, index, mean, spread, *_ = min(self._rows(), key=lambda row: min(row[4:]))
        width = "too narrow" if spread > 1 else "too wide"
        side = "low" if mean > 0.5 else "high"
        return (
            f"The ranks are not uniform (p = {self.p_value:.1g}), most clearly those of {name}"
            f"{list(index) or ''}: mean rank {mean:.2f} (above 0.5: q sits too low; here {side}), "
            f"spread {spread:.2f} times a uniform's (above 1: q is too narrow; here {width}). "
            "linear_response mends sds; a richer family both."
        )

    def summary(self):
        """Return a pandas frame with a row for each number.

        Returns
        -------
        pandas.DataFrame
            Columns name, index, "mean rank" (0.5 where q is centred), "spread" (sd of the ranks
            over that of uniform ones: above 1 where q is too narrow), "KS p" and "chi-square p".
        """
        pandas = require("pandas", "pandas")
        columns = ["name", "index", "mean rank", "spread", "KS p", "chi-square p"]
        return pandas.DataFrame(list(self._rows()), columns=columns)

    def _rows(self):
        ks, chi_square = self.p_values, self.chi_square_p_values
        for name, ranks in self.ranks.items():
            mean, spread = ranks.mean(0), ranks.std(0) / _UNIFORM_SD
            for index in np.ndindex(ranks.shape[1:]):
                values = mean, spread, ks[name], chi_square[name]
                yield name, index, *(float(value[index]) for value in values)

    def _repr_html_(self):
        header = ("name", "index", "mean rank", "spread", "KS p", "chi-square p")
        return html_table("Calibration", header, list(self._rows())[:10], self.advice)


@guarded
def calibration(
    estimator, n_simulations=200, *, n_samples=20, n_features=1, refit=True, random_state=None
) -> Calibration:
    """Simulate data whose latents are known, infer them, and rank the truth under q.

    Parameters
    ----------
    estimator : FactorizedVI or AmortizedVI
        With ``refit=True`` fitted or not, and left as it is; its model must be able to simulate.
    n_simulations : int, default=200
        Data sets to simulate, at least 20.
    n_samples : int, default=20
        Rows of each.
    n_features : int, default=1
        Columns of each; a fitted estimator's own if it is fitted.
    refit : bool, default=True
        True: theta is drawn from its prior, with a new fit for each data set; gives ranks of the
        globals and of one row's latents. False: theta is drawn from the fitted q(theta), which
        should be narrow, and only `posterior` is called; gives ranks of one row's latents.
    random_state : int, RandomState or None, default=None
        Seed or generator.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If a prior is flat, or taken from the data, so that nothing can be simulated from it; if
        q(theta) is a point; or if the numbers are too small.
    sklearn.exceptions.NotFittedError
        With ``refit=False``, if the estimator is not fitted.

    Notes
    -----
    It shows whether q's intervals have their nominal coverage, on average over the prior: a rank
    histogram with a valley means that q is too narrow, with a hill too wide, with a slope that it
    is shifted. It tests the whole fit: family, solver and noise rule. It cannot judge the user's
    data set, nor see errors that cancel over the prior. For latents that the model does not
    identify (rotations and signs of factors) ranks are not uniform under an exact posterior either,
    if the fit always picks the same one. Mean-field is expected to fail where globals and latents
    are correlated. Ranks are q's distribution function, the limit of ranks among draws. Source:
    Talts et al. (2018), "Validating Bayesian inference algorithms with simulation-based
    calibration"; Yao, Vehtari, Simpson & Gelman (2018), algorithm 3.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.diagnostics import calibration
    >>> from skavi.models import LocalLevel
    >>> vi = FactorizedVI(LocalLevel(0.1, 1.0, initial_mean=0.0, initial_sd=1.0))
    >>> report = calibration(vi, 20, n_samples=1, random_state=0)
    >>> report.ranks["z"].shape
    (20, 1)
    >>> report.p_value > 0.01
    True
    """
    for name, value, fewest in (
        ("n_simulations", n_simulations, _FEWEST),
        ("n_samples", n_samples, 1),
        ("n_features", n_features, 1),
    ):
        if not isinstance(value, int | np.integer) or value < fewest:
            raise ValueError(f"{name}={value!r} must be an integer >= {fewest}.")
    state = private_state(random_state)
    if not refit:
        return _calibrate_known_globals(estimator, n_simulations, n_samples, state)
    model, n_features = _source(estimator, n_features)
    runs = [
        _simulate_and_fit(estimator, model, n_samples, n_features, state)
        for _ in range(n_simulations)
    ]
    names = runs[0][0]
    ranks = {name: np.stack([each[name] for each, _ in runs]) for name in names}
    return Calibration(ranks, sum(not converged for _, converged in runs))


def _calibrate_known_globals(estimator, n_simulations, n_samples, state):
    check_is_fitted(estimator)
    model = estimator.model_
    if not model.count_latents(estimator._n_explained):
        raise ValueError(
            f"refit=False ranks latents, but {type(model).__name__} has none (n_latents is 0): "
            "leave refit at True."
        )
    if model.coupling.independent:  # one simulated row each, all inferred at once
        rows = [estimator.sample(1, state) for _ in range(n_simulations)]
        X, Z = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        return Calibration({"z": _row_ranks(estimator.posterior(X), Z)}, 0)
    ranks = []
    for _ in range(n_simulations):
        X, Z = estimator.sample(n_samples, state)
        row = state.randint(n_samples)
        ranks.append(_row_ranks(estimator.posterior(X), Z)[row])
    return Calibration({"z": np.stack(ranks)}, 0)


def _row_ranks(posterior, Z):
    return posterior.cdf(Z)


def _source(estimator, n_features):
    """Return the model to simulate from, and the number of columns."""
    fitted = hasattr(estimator, "model_")
    model = estimator.model_ if fitted else estimator.model
    if not isinstance(model, LatentVariableModel):
        raise ValueError("calibration needs an estimator with a model, or a fitted one.")
    model.check()
    if named := [column for columns in model.named_columns().values() for column in columns]:
        raise ValueError(
            f"{type(model).__name__} is given the column {named[0]!r}, which calibration cannot "
            "simulate: calibrate the model without given columns."
        )
    n_features = estimator.n_features_in_ if fitted else n_features
    prior = model.global_space(torch.zeros(1, n_features, dtype=torch.float64)).prior
    flat = [
        name for name, distribution in prior.items() if isinstance(innermost(distribution), Flat)
    ]
    if flat:
        raise ValueError(
            f"{type(model).__name__} has a flat prior of {flat[0]!r}, from which nothing can be "
            "simulated: give it a proper prior, or use refit=False."
        )
    return model, n_features


def _simulate_and_fit(estimator, model, n_samples, n_features, state):
    """Draw globals and rows, fit the rows, and rank the true values."""
    space = model.global_space(torch.zeros(1, n_features, dtype=torch.float64))
    for _ in range(_TRIES):
        theta, X, Z = _simulated(model, space, n_samples, n_features, state)
        vi = clone(estimator).set_params(
            model=clone(model), init=None, verbose=0, random_state=drawn_seed(state)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
            vi.fit(X)
            row = state.randint(n_samples)
            ranks = {"z": _row_ranks(vi.posterior(X), Z)[row]}
        # A table may lack a level of some column, and is drawn again: whether it does is up to the
        # data alone, given which the posterior is as it was, so that ranks stay level.
        if vi.model_.global_space(torch.as_tensor(X)).raw_shapes == space.raw_shapes:
            break
    else:
        raise ValueError(
            f"n_samples={n_samples}: none of {_TRIES} simulated tables had all levels of its "
            "columns, as the fitted one has. Simulate more rows."
        )
    u = space.unconstrain(theta)
    _check_prior(vi, space, u, X)
    q = vi.global_posterior_
    for name, where in space.slices.items():
        if not (q.unconstrained_sd[name] > 0).all():
            raise ValueError(f"q({name}) is a point: it has no distribution to rank values in.")
        standard = (u[where].numpy() - q.unconstrained_mean[name]) / q.unconstrained_sd[name]
        ranks[name] = ndtr(standard).reshape(tuple(space.raw_shapes[name]))
    return ranks, vi.converged_


def _simulated(model, space, n_samples, n_features, state):
    """Return globals from their prior, rows, and the rows' latents on the model's scale."""
    like = torch.zeros(1, n_features, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]), defaults_of(like):
        torch.manual_seed(drawn_seed(state))
        theta = {name: distribution.sample() for name, distribution in space.prior.items()}
        X, z = model.simulate(theta, n_samples, n_features)
    return theta, X.numpy(), model.own_scale(theta, z).numpy()


def _check_prior(vi, space, u, X):
    """Raise a ValueError if the fit's prior is not the one of the simulation."""
    fitted = vi.model_.global_space(torch.as_tensor(X))
    there, here = float(fitted.log_prior(u)), float(space.log_prior(u))
    if abs(there - here) > _SAME * (1 + abs(here)):
        raise ValueError(
            f"{type(vi.model_).__name__} takes priors from the data, so a new fit has others than "
            "the data were simulated from: set its prior scales, or use refit=False."
        )
