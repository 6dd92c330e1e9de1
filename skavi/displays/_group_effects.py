"""Caterpillar plot: the effects of groups with their intervals, in order of their means."""

from typing import TYPE_CHECKING, Self

import numpy as np

from skavi._estimators.base import VariationalInference
from skavi._platform.array_types import TableLike
from skavi._platform.forks_and_threads import guarded
from skavi.displays._axes import ABOVE, Display, colour, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Probabilities of the ends of the thin and of the thick bars, which hold 90 % and 50 %.
_ENDS = (0.05, 0.25, 0.75, 0.95)
#: Inches a group, so that its label is read, and around all groups.
_HEIGHT, _MARGIN = 0.17, 1.1


@guarded
class GroupEffectsDisplay(Display):
    """The effects of groups, lowest first, each with bars that hold 50 % and 90 % of q.

    Parameters
    ----------
    labels : sequence of n_groups labels
    mean : ndarray of shape (n_groups,)
        Posterior means of one effect.
    quantiles : ndarray of shape (4, n_groups)
        Its 5, 25, 75 and 95 % quantiles.
    name : str, default="effect"
        Of the effect.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> from skavi.displays import GroupEffectsDisplay
    >>> from skavi.models import MixedEffects
    >>> rng = np.random.default_rng(0)
    >>> group = np.repeat(np.arange(8), 5)
    >>> X = np.column_stack([rng.normal(size=8)[group] + 0.3 * rng.normal(size=40), group])
    >>> vi = FactorizedVI(MixedEffects(centred=True), random_state=0).fit(X)
    >>> display = GroupEffectsDisplay.from_estimator(vi, X)
    >>> display.ax_.get_xlabel()
    'intercept'
    """

    def __init__(self, labels, mean, quantiles, name="effect"):
        self.labels, self.mean, self.quantiles, self.name = labels, mean, quantiles, name

    @classmethod
    def from_estimator(
        cls,
        estimator: VariationalInference,
        X: TableLike,
        *,
        effect: int | str = 0,
        most: int = 60,
        ax: "Axes | None" = None,
    ) -> Self:
        """Infer the groups' effects and draw one of them.

        Parameters
        ----------
        estimator : FactorizedVI or AmortizedVI
            Fitted with a model of groups: `MixedEffects` or another `GroupedModel`.
        X : array-like of shape (n_samples, n_features)
        effect : int or str, default=0
            Which effect (latent) of a group: its place, or its name, such as "intercept".
        most : int, default=60
            Groups that are drawn at most: of more, those with the lowest and the highest means.
        ax : matplotlib Axes, default=None
            None: a new figure, as high as its groups need.

        Returns
        -------
        GroupEffectsDisplay

        Raises
        ------
        ValueError
            If the model knows no groups, or there is no such effect.
        """
        posterior = estimator.posterior(X)
        if posterior.groups is None:
            raise ValueError(
                f"GroupEffectsDisplay draws effects of groups, but rows of "
                f"{type(estimator.model_).__name__} are in none: fit a MixedEffects or another "
                "GroupedModel."
            )
        names = [str(name) for name in posterior.coords["latent"]]
        if effect not in names and effect not in range(len(names)):
            raise ValueError(f"effect={effect!r} must be one of {names}, or a place among them.")
        k = names.index(effect) if effect in names else int(effect)
        ends = posterior.quantile(_ENDS)[..., k]
        display = cls(list(posterior.groups), posterior.mean[:, k], ends, names[k])
        return display.plot(most=most, ax=ax)

    def plot(self, *, most: int = 60, ax: "Axes | None" = None) -> Self:
        """Draw the effects.

        Parameters
        ----------
        most : int, default=60
            Groups that are drawn at most.
        ax : matplotlib Axes, default=None

        Returns
        -------
        GroupEffectsDisplay
        """
        order, n = np.argsort(self.mean, kind="stable"), len(self.mean)
        shown = order if n <= most else np.r_[order[: most // 2], order[n - (most - most // 2) :]]
        self._begin(ax, figsize=(6.4, max(3.0, _MARGIN + _HEIGHT * len(shown))))
        places, q = np.arange(len(shown)), self.quantiles[:, shown]
        self.ax_.hlines(places, q[0], q[3], color=colour(0), lw=1.0, label="90 % of q")
        self.ax_.hlines(places, q[1], q[2], color=colour(0), lw=3.0, label="50 % of q")
        self.ax_.plot(self.mean[shown], places, "o", ms=3.5, color=self._ink, label="mean")
        average = float(self.mean.mean())
        self.ax_.axvline(average, color="grey", lw=0.9, ls="--", label=f"mean of {n} groups")
        self.ax_.set_yticks(places, [short(self.labels[i]) for i in shown], fontsize="x-small")
        self.ax_.set(xlabel=self.name, ylim=(-1, len(shown)))
        if len(shown) < n:
            left_out = f"{n - len(shown)} of {n} groups in between are not drawn"
            self.ax_.set_ylabel(left_out, fontsize="small")
            self.ax_.axhline(most // 2 - 0.5, color="grey", lw=0.9, ls=":")
        return self._end(**ABOVE)
