"""One page about a fit: what was fitted, how far it came, its globals, and what to know of it."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby, islice
from numbers import Real
from operator import itemgetter
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skavi._component import Component
from skavi._data.column_roles import LABELS
from skavi._estimators.fitted_estimator import FittedEstimator
from skavi._fit.suboptimality import nats_below
from skavi._numerics.whole_numbers import is_whole
from skavi._platform.forks_and_threads import LostThreadsError, guarded
from skavi._platform.html import html_table
from skavi.models import LatentVariableModel
from skavi.posterior import GlobalPosterior
from skavi.posterior._global import NUMBER_COLUMNS
from skavi.posterior._global_labels import label

#: Arguments that are chosen where they are None.
_CHOSEN = ("inference_function", "family", "global_family", "noise", "solver")
_CORRECTED = "The quantiles and corrected_sd are by linear response; sd is that of q."
#: Characters of a component's repr, and of a number's label, that fit into a line of 100.
_MOST_CHARACTERS, _LABEL = 78, 40


@dataclass(frozen=True, repr=False)
class FitSummary:
    """A page about a fit, for terminals and notebooks: ``print(estimator.summary())``.

    Attributes
    ----------
    title : str
        The estimator and its model.
    facts : list of (str, str)
        What was fitted, how far, and what was chosen.
    numbers : list of tuple
        For each number of the globals its label, mean, sd, corrected sd and quantiles.
    n_numbers : int
        How many there are, of which `numbers` are the first of each global.
    notes : list of str
        What a reader of the results must know.
    """

    title: str
    facts: list[tuple[str, str]]
    numbers: list[tuple[Any, ...]]
    n_numbers: int
    notes: list[str]

    def __repr__(self):
        wide = max(len(name) for name, _ in self.facts) + 2
        facts = [f"{name:<{wide}}{value}" for name, value in self.facts]
        table = _aligned(self.numbers)
        more = self._more
        width = max(map(len, [self.title, *facts, *table]))
        parts = [self.title, "=" * width, *facts, "-" * width, *table]
        return "\n".join([*parts, "-" * width, *filter(None, [more, *self.notes])])

    @property
    def _more(self) -> str:
        """Say what is left out of the list of numbers."""
        listed, n = len(self.numbers), self.n_numbers
        return f"{listed} of {n} numbers: summary(n_numbers=None) has all." if listed < n else ""

    def _repr_html_(self):
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        facts = html_table(self.title, (), self.facts)
        return (
            facts + html_table("Globals", ("", *NUMBER_COLUMNS), self.numbers, self._more) + notes
        )


def _aligned(numbers):
    """Return rows of numbers as lines of text, under a header."""
    if not numbers:
        return ["The model has no globals."]
    cells = [["", *NUMBER_COLUMNS]]
    cells += [[_shorten(name, _LABEL), *map(_number, values)] for name, *values in numbers]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in cells
    ]


def _even_shares(sizes: dict[str, int], most: int) -> dict[str, int]:
    """Return how many of each name to take, at most `most` in all: small ones whole."""
    shares, left = {}, most
    smallest_first = sorted(sizes, key=lambda name: sizes[name])
    for n_taken, name in enumerate(smallest_first):
        shares[name] = min(sizes[name], -(-left // (len(sizes) - n_taken)))
        left -= shares[name]
    return shares


def _number(value):
    return "-" if np.isnan(value) else f"{value:.4g}"


def _shorten(text, most):
    return text if len(text) <= most else text[: most - 3] + "..."


@guarded
class Summarised(FittedEstimator):
    """`summary`, and what a fitted estimator's repr adds to its arguments."""

    global_posterior_: GlobalPosterior
    get_params: Callable[..., dict]
    model: LatentVariableModel | None
    elbo_: float
    elbo_se_: float
    n_samples_fit_: int
    n_iter_: int
    converged_: bool
    stopped_early_: bool
    suboptimality_: float

    def summary(self, n_numbers: int | None = 30) -> FitSummary:
        """Return one page about the fit: state, choices, globals with their sds, and notes.

        Parameters
        ----------
        n_numbers : int or None, default=30
            How many numbers of the globals are listed at most, the first of each in turn; None:
            all.
            ``global_posterior_.to_frame()`` has them all as a frame.

        Returns
        -------
        FitSummary
            Prints as text; a notebook shows it as a table. Attributes: title, facts, numbers,
            notes.

        Raises
        ------
        ValueError
            If n_numbers is neither None nor an integer >= 1.

        Examples
        --------
        >>> from skavi import FactorizedVI
        >>> from skavi.models import LinearModel
        >>> FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]]).summary()
        FactorizedVI: LinearModel()
        =============================================================================
        rows                  3
        columns               1
        latents               1 a row
        ELBO                  -5.4355 nats (-1.812 a row)
        converged             yes, ... nats below the optimum by its own estimate
        iterations            4
        family chosen         DiagonalNormal()
        global_family chosen  DiagonalNormal()
        noise chosen          GaussHermite(n_nodes=3)
        solver chosen         Newton()
        -----------------------------------------------------------------------------
               mean     sd  corrected_sd       5%  50%    95%
        theta     2  1.403         1.553  -0.5551    2  4.555
        -----------------------------------------------------------------------------
        The quantiles and corrected_sd are by linear response; sd is that of q.
        """
        if n_numbers is not None and not is_whole(n_numbers, 1):
            raise ValueError(f"n_numbers={n_numbers!r} must be None or an integer >= 1.")
        check_is_fitted(self)
        globals_ = self.global_posterior_
        sizes = {name: mean.size for name, mean in globals_.mean.items()}
        size = sum(sizes.values())
        shares = sizes if n_numbers is None else _even_shares(sizes, n_numbers)
        each = groupby(globals_.rows(), key=itemgetter(0))
        rows = [row for name, own in each for row in islice(own, shares[name])]
        numbers = [(label(row), *row[2:]) for row in rows]
        title = f"{type(self).__name__}: {_short_repr(self.model or self.model_)}"
        reason = globals_.corrected_reason if size else None
        notes = [f"No corrected sds, and quantiles of q itself: {reason}"] if reason else []
        notes += [_CORRECTED] if size and not reason else []
        return FitSummary(title, [*self._facts()], numbers, size, notes + self._notes())

    def _facts(self) -> Iterator[tuple[str, str]]:
        """Yield what was fitted, how far the fit came, and what was chosen, as text."""
        fitted = vars(self)
        n = fitted.get("n_samples_fit_")  # files of earlier versions do not hold it
        yield "rows", "not kept" if n is None else f"{n:,}"
        yield "columns", f"{self.n_features_in_:,}"
        unit = "row" if self.model_.columns_.given.get(LABELS) is None else "group"
        yield "latents", f"{self._fitted_model.objective.n_columns:,} a {unit}"
        error = f" +/- {self.elbo_se_:.2g}" if self.elbo_se_ else ""
        each = "" if n is None else f" ({self.elbo_ / n:.4g} a row)"
        yield "ELBO", f"{self.elbo_:.4f}".rstrip("0").rstrip(".") + f"{error} nats{each}"
        yield "converged", self._state()
        yield "iterations", f"{self.n_iter_:,}"
        parameters = self.get_params(deep=False)
        if self.model is None:
            yield "model chosen", _short_repr(self.model_)
        for name in _CHOSEN:
            if name in parameters and parameters[name] is None:
                found = getattr(self, f"{name}_")
                yield f"{name} chosen", "closed forms" if found is None else _short_repr(found)

    def _state(self) -> str:
        """Say whether the fit has converged, and how far it is below its optimum."""
        word = "yes" if self.converged_ else "stopped early" if self.stopped_early_ else "no"
        return f"{word}, {nats_below(self.suboptimality_)} the optimum by its own estimate"

    # --- reprs ----------------------------------------------------------------------------------

    def __repr__(self, N_CHAR_MAX=700):
        return "\n".join([super().__repr__(N_CHAR_MAX), *self._notes()])  # type: ignore[call-arg]

    def _html_repr(self):
        own = super()._html_repr()  # type: ignore[misc]
        if not hasattr(self, "global_posterior_"):
            return own
        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
        try:
            return own + html_table("Fitted", (), self._facts()) + notes
        except LostThreadsError:  # a repr raises nothing
            return own

    @property
    def bias_note_(self):
        check_is_fitted(self)
        bias = self.model_.bias_of_globals
        if self.family_.links_rows or not bias:
            return ""
        names = ", ".join(self.global_posterior_.mean)
        return f"{type(self.model_).__name__} ({names}): {bias}." if names else ""

    def _notes(self):
        """Return what a reader of the results must know, a line each."""
        if not hasattr(self, "global_posterior_"):
            return []
        try:
            notes = self.bias_note_, self.global_posterior_.note, self.model_.note
            return [note for note in notes if note]
        except LostThreadsError:  # a repr raises nothing
            return []


def _short_repr(component: BaseEstimator) -> str:
    """Return a component with those of its arguments that are not the defaults and are short."""
    if not isinstance(component, Component):
        return _shorten(" ".join(repr(component).split()), _MOST_CHARACTERS)
    defaults = inspect.signature(type(component)).parameters
    plain = (str, Real, tuple, list, Component)
    changed = [
        f"{name}={value!r}"
        for name, value in component.get_params(deep=False).items()
        if isinstance(value, plain) and value != defaults[name].default
    ]
    return _shorten(f"{type(component).__name__}({', '.join(changed)})", _MOST_CHARACTERS)
