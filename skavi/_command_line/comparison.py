"""A comparison of F-VI, A-VI and scikit-learn's PCA and FactorAnalysis on one table."""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn import decomposition
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skavi._command_line.table_files import columns_as_bytes
from skavi._estimators.amortized import AmortizedVI
from skavi._estimators.factorized import FactorizedVI
from skavi._fit.defaults import MAX_FULL_GLOBALS, default_model
from skavi.models import FactorAnalysis

#: Share of the rows to test on. Not measured: a usual split.
TEST_FRACTION = 0.3
#: Nats a row: what a function loses on new rows is told from here on. Not measured.
_NOTICED = 0.1


@dataclass(frozen=True)
class Result:
    """Results of one estimator.

    Attributes
    ----------
    name : str
    estimator : estimator
        Solution on the training rows.
    elbo : float
        Training ELBO, nats a row; NaN for point estimates, which have none.
    held_out : float
        Of the test rows, nats a row: ELBO, or log likelihood for point estimates.
    fit_seconds, transform_seconds : float
        Of the training rows, and of the test rows.
    accuracy : float or None
        Of a logistic regression on the test rows' latents; None without labels.
    """

    name: str
    estimator: BaseEstimator
    elbo: float
    held_out: float
    fit_seconds: float
    transform_seconds: float
    accuracy: float | None


@dataclass(frozen=True)
class Comparison:
    """Results on one split of one table.

    Attributes
    ----------
    results : list of Result
        `FactorizedVI` and `AmortizedVI` first.
    train, test : ndarray of shape (n_rows, n_columns)
    test_labels : ndarray of shape (n_rows,) or None
    """

    results: list[Result]
    train: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray | None

    @property
    def gap(self) -> float:
        """Amortization gap: training ELBO of F-VI less that of A-VI, nats a row."""
        factorized, amortized, *_ = self.results
        return factorized.elbo - amortized.elbo

    @property
    def gap_text(self) -> str:
        """The gap as text; a gap within the fits' tolerance is given as 0."""
        tolerance = self.results[0].estimator.tol_
        return f"{0.0 if abs(self.gap) < tolerance else self.gap:.2g} nats a row"

    def latents_as_bytes(self, path, X) -> bytes:
        """Posterior means and sds of the latents of rows under F-VI, as a table file's content."""
        posterior = self.results[0].estimator.posterior(X)
        names = list(map(str, self.results[0].estimator.get_feature_names_out()))
        columns = list(zip(names, posterior.mean.T, strict=True))
        columns += [(f"{name}_sd", sd) for name, sd in zip(names, posterior.sd.T, strict=True)]
        return columns_as_bytes(path, columns)


def choose_model(X, n_components, noise):
    """Return factor analysis, of as many components as the library chooses if they are None."""
    if n_components is not None:
        return FactorAnalysis(n_components, noise)
    X = torch.as_tensor(X)
    return default_model(X, X.new_ones(len(X)), noise)


def compare(X, labels, model, seed, verbose):
    """Fit all estimators on 70 % of the rows and measure them on the rest.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_columns)
    labels : ndarray of shape (n_rows,) or None
    model : FactorAnalysis
    seed : int
    verbose : int
        Passed on to the estimators.

    Returns
    -------
    Comparison
    """
    rows = np.arange(len(X))
    train, test = train_test_split(
        rows, test_size=TEST_FRACTION, random_state=seed, stratify=labels
    )
    options = {"random_state": seed, "verbose": verbose}
    parts = X[train], X[test], *_split(labels, train, test)
    factorized = _measure("FactorizedVI", FactorizedVI(model, **options), *parts)
    results = [factorized, _measure_amortized(model, options, factorized, parts)]
    if not np.isnan(X).any():  # which scikit-learn's do not take
        k = model.n_components
        pca = decomposition.PCA(k, random_state=seed)
        analysis = decomposition.FactorAnalysis(k, random_state=seed)
        results += [_measure("PCA", pca, *parts), _measure("FactorAnalysis", analysis, *parts)]
    return Comparison(results, X[train], X[test], _split(labels, train, test)[1])


def _measure_amortized(model, options, factorized, parts):
    """Measure AmortizedVI from the fit of FactorizedVI, which it would else repeat.

    The seconds of that fit count. With very many globals it fits its own, and keeps q(theta).
    """
    name, means = "AmortizedVI", factorized.estimator.global_posterior_.mean
    if sum(map(np.size, means.values())) > MAX_FULL_GLOBALS:
        return _measure(name, AmortizedVI(model, **options), *parts)
    started = AmortizedVI(model, init=factorized.estimator, **options)
    result = _measure(name, started, *parts)
    return replace(result, fit_seconds=factorized.fit_seconds + result.fit_seconds)


def _split(labels, train, test):
    return (None, None) if labels is None else (labels[train], labels[test])


def _measure(name, estimator, train, test, train_labels, test_labels):
    started = time.perf_counter()
    estimator.fit(train)
    fitted = time.perf_counter()
    latents = estimator.transform(test)
    transformed = time.perf_counter()
    accuracy = None
    if train_labels is not None:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        classifier.fit(estimator.transform(train), train_labels)
        accuracy = classifier.score(latents, test_labels)
    elbo = estimator.elbo_ / len(train) if hasattr(estimator, "elbo_") else math.nan
    return Result(
        name=name,
        estimator=estimator,
        elbo=elbo,
        held_out=estimator.score(test),
        fit_seconds=fitted - started,
        transform_seconds=transformed - fitted,
        accuracy=accuracy,
    )


def as_text(comparison):
    """Return the results as an aligned table with a note and the gap."""
    labelled = comparison.test_labels is not None
    lines = [
        f"{'':<16}{'train ELBO':>12}{'held-out':>12}{'fit':>9}{'transform':>11}"
        + f"{'accuracy':>11}" * labelled,
        f"{'':<16}{'nats a row':>12}{'nats a row':>12}{'seconds':>9}{'seconds':>11}"
        + f"{'on test':>11}" * labelled,
    ]
    for result in comparison.results:
        point = math.isnan(result.elbo)
        elbo, mark = ("", "*") if point else (f"{result.elbo:.3f}", " ")
        held_out = f"{result.held_out:.3f}" if result.held_out > -1e6 else f"{result.held_out:.1e}"
        line = f"{result.name:<16}{elbo:>12}{held_out:>11}{mark}"
        line += f"{result.fit_seconds:>9.2f}{result.transform_seconds:>11.4f}"
        lines.append(line + (f"{result.accuracy:>11.3f}" if labelled else ""))
    constant = 0
    if np.isnan(comparison.train).any() or np.isnan(comparison.test).any():
        lines.append("scikit-learn's PCA and FactorAnalysis take no missing cells: not compared")
    else:
        lines += [
            "* scikit-learn's, at point estimates: exact log likelihood where FactorizedVI and",
            "  AmortizedVI report a lower bound, averaged over the posterior of loadings and noise",
        ]
        constant = int((np.ptp(comparison.train, axis=0) == 0).sum())
    if constant:
        lines.append(
            f"  ({constant} columns are constant in training: FactorAnalysis gives them no noise)"
        )
    return "\n".join([*lines, "", *_on_the_gap(comparison)])


def _on_the_gap(comparison):
    """Return lines on what amortizing costs: in training, and on new rows where that is noticed."""
    lines = [
        f"Amortization gap: {comparison.gap_text} (training ELBO, FactorizedVI less AmortizedVI).",
        "In this model a row's best factor is a linear function of the row, so a function can find",
        "them all and amortization costs nothing; where it is not, the gap tells the price.",
    ]
    factorized, amortized, *_ = comparison.results
    lost = factorized.held_out - amortized.held_out
    if lost > _NOTICED:
        lines.append(f"On the rows to test the function loses {lost:.2g} nats a row.")
    return lines


def draw(comparison, file, kind, title):
    """Draw the test rows' latents, and each row's held-out ELBO under both fits.

    Parameters
    ----------
    comparison : Comparison
    file : binary file
    kind : str
        One of matplotlib's formats.
    title : str
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(9.6, 4.4), layout=ConstrainedLayoutEngine(wspace=0.06))
    figure.suptitle(title, parse_math=False)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    factorized, amortized, *_ = (result.estimator for result in comparison.results)
    scores = factorized.score_samples(comparison.test)
    _draw_latents(left, factorized, comparison, scores)
    _draw_rows(right, scores, amortized.score_samples(comparison.test), comparison.gap_text)
    figure.savefig(file, format=kind, dpi=110)


def _draw_latents(axes, estimator, comparison, scores):
    posterior = estimator.posterior(comparison.test)
    names = posterior.coords["latent"]
    size = np.square(estimator.global_posterior_.mean["loadings"]).sum(0)
    first, *others = np.argsort(-size, kind="stable")
    x, x_sd = posterior.mean[:, first], posterior.sd[:, first].mean()
    if others:
        y, y_sd = posterior.mean[:, others[0]], posterior.sd[:, others[0]].mean()
        axes.set_ylabel(names[others[0]])
        axes.set_title("Test rows: posterior means of two latents", fontsize=10)
    else:
        y, y_sd = scores, 0.0
        axes.set_ylabel("held-out ELBO (nats)")
        axes.set_title("Test rows: posterior mean and ELBO", fontsize=10)
    axes.set_xlabel(names[first])
    if comparison.test_labels is None:
        points = axes.scatter(x, y, c=scores, s=12, cmap="cividis")
        axes.figure.colorbar(points, ax=axes, label="held-out ELBO (nats)")
    else:
        _draw_labels(axes, x, y, comparison.test_labels)
    # Leave room above the rows for the cross.
    low, high = axes.get_ylim()
    height = high - low
    room = max(2 * y_sd, 0.08 * height) + 0.06 * height
    axes.set_ylim(low, high + room)
    left, right = axes.get_xlim()
    where = left + 0.05 * (right - left) + x_sd, high + room / 2
    axes.errorbar(*where, xerr=x_sd, yerr=y_sd, color="black", capsize=2, lw=1)
    axes.annotate(
        "± one posterior sd (mean over rows)",
        (where[0] + x_sd, where[1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def _draw_labels(axes, x, y, labels):
    """Draw each row as the text of its label, so that colours are not needed to read it."""
    import matplotlib

    names = np.unique(labels)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.75, len(names)))
    axes.scatter(x, y, s=0)
    for name, colour in zip(names, colours, strict=True):
        for row in np.flatnonzero(labels == name):
            axes.text(x[row], y[row], str(name), color=colour, size=7, ha="center", va="center")


def _draw_rows(axes, factorized, amortized, gap_text):
    both = np.concatenate([factorized, amortized])
    low, high = both.min(), both.max()
    axes.plot([low, high], [low, high], color="0.6", lw=1, label="no gap", zorder=1)
    axes.scatter(factorized, amortized, s=12, alpha=0.5, color="#0072B2", label="a test row")
    axes.set_xlabel("held-out ELBO, FactorizedVI (nats)")
    axes.set_ylabel("held-out ELBO, AmortizedVI (nats)")
    axes.set_title(f"Amortization gap in training:\n{gap_text}", fontsize=10)
    axes.legend(frameon=False, loc="upper left")
