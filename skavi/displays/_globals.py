"""Forest plot: globals with two intervals each, q's own and the one by linear response."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from skavi._estimators.base import VariationalInference
from skavi._platform.forks_and_threads import guarded
from skavi._platform.optional_imports import require
from skavi.displays._axes import Display, colour, explained_names, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Probabilities of the ends of the bars, which hold 90 %.
_ENDS = (0.05, 0.95)
#: Characters of a label that are shown: of one name, and of each of two. Judged by eye.
_LONGEST, _EACH_OF_TWO = 40, 24
#: Characters beside which axes are too narrow for a legend in columns. Judged by eye.
_NARROW = 30
#: Inches a number, so that its label is read; around a global, and around all of them.
_HEIGHT, _BESIDE, _MARGIN = 0.19, 0.55, 0.7


@guarded
class GlobalsDisplay(Display):
    """Globals' means with bars that hold 90 %: of q, and of the normal by linear response.

    q's own intervals are too short where globals and latents are correlated; the thin bars show by
    how much.

    Parameters
    ----------
    mean : dict of str to ndarray
        Posterior means, as ``global_posterior_.mean`` has them.
    quantiles : dict of str to ndarray
        Their 5 and 95 % quantiles under q; the shape of each has a 2 in front.
    corrected : dict of str to ndarray, default=None
        The same by linear response.
    labels : dict of str to tuple of sequences of str, default=None
        Labels along each dimension of a global; those of other globals are counted.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The first one.
    axes_ : list of matplotlib Axes
        One for each global, since they have different units; or those given.
    figure_ : matplotlib Figure

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> from skavi.displays import GlobalsDisplay
    >>> from skavi.models import RandomEffects
    >>> X = [[0.1, 0.2, -1.0], [0.9, 0.2, 0.0], [1.4, 0.2, 1.0]]
    >>> vi = FactorizedVI(RandomEffects(covariates=[2])).fit(X)
    >>> display = GlobalsDisplay.from_estimator(vi, ["mu", "coefficients"])
    >>> [ax.get_xlabel() for ax in display.axes_]
    ['mu', 'coefficients']
    """

    def __init__(self, mean, quantiles, corrected=None, labels=None):
        self.mean, self.quantiles, self.corrected = mean, quantiles, corrected
        self.labels = {} if labels is None else labels

    @classmethod
    def from_estimator(
        cls,
        estimator: VariationalInference,
        names: Sequence[str] | None = None,
        *,
        most: int = 50,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw globals of a fit.

        Parameters
        ----------
        estimator : FactorizedVI or AmortizedVI
            Fitted. Without linear response (``global_posterior_.corrected_reason`` says why) only
            q's intervals are drawn.
        names : str or list of str, default=None
            Of globals. None: all of them.
        most : int, default=50
            Numbers that are drawn at most, shared out among the globals: the first ones of each.
        ax : matplotlib Axes, default=None
            To draw all globals on. None: a new figure with axes for each, as high as they need.

        Returns
        -------
        GlobalsDisplay

        Raises
        ------
        ValueError
            If there is no such global, or none at all.
        """
        q = estimator.global_posterior_
        known = list(q.mean)
        names = known if names is None else [names] if isinstance(names, str) else list(names)
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            said = f"there is no global {unknown[0]!r}" if unknown else "there is nothing to draw"
            raise ValueError(f"names: {said}; the model has {known}.")
        ends = [q.quantile(_ENDS)]
        ends += [q.quantile(_ENDS, corrected=True)] if q.corrected_sd is not None else []
        mean, own, *wide = ({name: each[name] for name in names} for each in (q.mean, *ends))
        display = cls(mean, own, wide[0] if wide else None, _labels_of(estimator))
        return display.plot(most=most, ax=ax)

    def plot(self, *, most: int = 50, ax: "Axes | None" = None) -> Self:
        """Draw the globals.

        Parameters
        ----------
        most : int, default=50
            Numbers that are drawn at most.
        ax : matplotlib Axes, default=None

        Returns
        -------
        GlobalsDisplay
        """
        counts = _shared_out({name: mean.size for name, mean in self.mean.items()}, most)
        if ax is None:
            axes = _new_axes(list(counts.values()))
            for here, (name, count) in zip(axes, counts.items(), strict=True):
                self._draw(here, [(name, count)])
        else:
            axes = [ax]
            self._draw(ax, list(counts.items()))
        self.axes_ = axes
        self._begin(axes[0])
        ticks = [text.get_text() for here in axes for text in here.get_yticklabels()]
        narrow = max(map(len, ticks), default=0) > _NARROW  # one below the other, in little room
        legend(self.ax_, **({"ncols": 1} if narrow else {}))
        return self

    def _draw(self, ax, counts):
        """Draw some of the numbers of some globals on axes, from top to bottom."""
        mean = np.concatenate([self.mean[name].reshape(-1)[:n] for name, n in counts])
        places, ink = np.arange(len(mean)), ax.xaxis.label.get_color()
        ends = self._ends(self.quantiles, counts)
        if self.corrected is not None:
            wide, said = self._ends(self.corrected, counts), "90 % by linear response"
            ax.hlines(places, *wide, color=colour(1), lw=1.2, label=said)
        ax.hlines(places, *ends, color=colour(0), lw=4.0, label="90 % of q")
        ax.plot(mean, places, "o", ms=3.5, color=ink, label="mean")
        if ends.min() < 0 < ends.max():
            ax.axvline(0.0, color="grey", lw=0.9, ls="--")
        ticks = [label for name, n in counts for label in self._ticks(name, n, len(counts) > 1)]
        ax.set_yticks(places, ticks, fontsize="small")
        ax.set_xlabel("\n".join(self._title(*each) for each in counts))
        ax.set_ylim(len(mean) - 0.4, -0.6)
        ax.grid(alpha=0.25)

    def _ends(self, quantiles, counts):
        return np.concatenate([quantiles[name].reshape(2, -1)[:, :n] for name, n in counts], 1)

    def _title(self, name, n):
        size = self.mean[name].size
        return name if n == size else f"{name} (the first {n} of {size} numbers)"

    def _ticks(self, name, n, with_name):
        """Return the labels of a global's first n numbers."""
        shape, labels, ticks = self.mean[name].shape, self.labels.get(name, ()), []
        for place in [*np.ndindex(shape)][:n]:
            known = zip(labels, place, strict=False) if len(labels) == len(shape) else ()
            parts = [str(names[i]) for names, i in known] or list(map(str, place))
            longest = _LONGEST if len(parts) == 1 else _EACH_OF_TWO
            text = ", ".join(_short(part, longest) for part in parts)
            ticks.append(": ".join(filter(None, [name, text])) if with_name else text or name)
        return ticks


def _labels_of(estimator):
    """Return the labels of the globals of a fit: of columns, latents and covariates by name."""
    model, names = estimator.model_, explained_names(estimator)
    n_latents = model.count_latents(len(names))
    known = {
        "feature": names,
        "latent": list(estimator.get_feature_names_out()[:n_latents]),
        "covariate": model.columns_.labels("covariates"),
    }
    found = {}
    for name, mean in estimator.global_posterior_.mean.items():
        dims = model.global_dims().get(name, ())
        pairs = zip(dims, mean.shape, strict=False)
        along = tuple(known.get(dim, list(range(size))) for dim, size in pairs)
        if dims and tuple(map(len, along)) == mean.shape:
            found[name] = along
    return found | model.global_labels()


def _shared_out(sizes, most):
    """Return how many numbers of each global are drawn: small ones whole, large ones alike."""
    left, counts = most, {}
    for i, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        counts[name] = min(size, max(1, left // (len(sizes) - i)))
        left -= counts[name]
    return {name: counts[name] for name in sizes}


def _new_axes(counts):
    """Return axes one below the other, as high as so many numbers need."""
    pyplot = require("matplotlib.pyplot", "skavi[plot]")
    heights = [_BESIDE + _HEIGHT * count for count in counts]
    _, axes = pyplot.subplots(
        len(counts),
        figsize=(6.4, max(2.0, _MARGIN + math.fsum(heights))),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    return list(axes[:, 0])


def _short(text, longest):
    """Cut a long label in its middle: columns of one kind differ at the end."""
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[: longest - 3 - half]}...{text[-half:]}"
