"""The posterior of the globals, on the model's own scale."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from skavi._numerics.aligned import aligned
from skavi._platform.array_types import Floats, Seed
from skavi._platform.forks_and_threads import LostThreadsError, guarded
from skavi._platform.html import html_table
from skavi._platform.memory import require_memory
from skavi._platform.optional_imports import require
from skavi._platform.random_state import private_state
from skavi.families import Family, FullFactors, NormalFactors
from skavi.models import LatentVariableModel
from skavi.posterior._arviz import data_tree
from skavi.posterior._correction import Correction, corrected_sds
from skavi.posterior._global_labels import arviz_labels, dimension_names, label, place_named
from skavi.posterior._quantiles import SHOWN_QUANTILES, percent, probabilities, shown

if TYPE_CHECKING:
    from pandas import DataFrame

#: Numbers of the table in a notebook, which a screen shows without scrolling.
_SHOWN_NUMBERS = 10
#: Times q's sd: a corrected sd beyond that is told, since a 90 % interval of q then covers 73 %.
_TOLD_RATIO = 1.5
#: What the tables say of each number.
NUMBER_COLUMNS = ("mean", "sd", "corrected_sd", *map(percent, SHOWN_QUANTILES))
_COLUMNS = ("name", "index", *NUMBER_COLUMNS)
_UNKNOWN = Correction.without("Linear response was not computed.")


@guarded
class GlobalPosterior:
    """The factor q(theta), read on the model's own (constrained) scale.

    Attributes
    ----------
    mean, sd : dict of str to ndarray
        Posterior means and standard deviations by the names of ``model.global_prior``.
    unconstrained_mean, unconstrained_sd : dict of str to ndarray
        Of the same globals on the real line, where q is normal (for example log tau).
    corrected_sd : dict of str to ndarray, or None
        Standard deviations by linear response, as ``linear_response(...).global_sd`` gives them:
        q's own are too small where latents are correlated. On the model's scale they are first
        order in the global's mean (the delta method): approximate for a transformed global, and
        possibly below `sd`. None as a whole if the fit has none: see `corrected_reason`.
    unconstrained_corrected_sd : dict of str to ndarray, or None
        The same on the real line: exact where the posterior is normal.
    corrected_reason : str or None
        A sentence why there is no correction.
    note : str
        One line that says that q's sds are too small, and what to use; else empty.

    Notes
    -----
    Source of the corrections: Giordano, Broderick & Jordan (2018), "Covariances, robustness, and
    variational Bayes", equation 14. They ignore other modes, most of skew, and errors of the means.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> vi = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
    >>> round(float(vi.global_posterior_.mean["theta"]), 6)
    2.0
    >>> vi.global_posterior_.summary().round(3)
        name index  mean     sd  corrected_sd     5%  50%    95%
    0  theta    ()   2.0  1.403         1.553 -0.555  2.0  4.555
    """

    def __init__(
        self,
        model: LatentVariableModel,
        family: Family,
        raw: np.ndarray,
        n_features: int,
        correction: Correction = _UNKNOWN,
        feature_names: Sequence[str] | None = None,
    ):
        self._model, self._family, self._raw = model, family, raw
        self._n_features, self._correction = n_features, correction
        self._feature_names = feature_names

    # Moments are computed when they are read, since callbacks get a posterior in every iteration.

    @cached_property
    def unconstrained_mean(self) -> dict[str, Floats]:
        space, factor = self._space_and_factor()
        return {name: factor.mean[where].numpy().copy() for name, where in space.slices.items()}

    @cached_property
    def unconstrained_sd(self) -> dict[str, Floats]:
        space, factor = self._space_and_factor()
        return {name: factor.sd[where].numpy().copy() for name, where in space.slices.items()}

    @property
    def mean(self) -> dict[str, Floats]:
        return {name: mean for name, (mean, _) in self._mean_and_sd.items()}

    @property
    def sd(self) -> dict[str, Floats]:
        return {name: sd for name, (_, sd) in self._mean_and_sd.items()}

    @cached_property
    def _mean_and_sd(self):
        space, factor = self._space_and_factor()
        pairs = {name: space.moments(name, factor) for name in space.slices}
        return {name: (m.numpy().copy(), sd.numpy().copy()) for name, (m, sd) in pairs.items()}

    # --- corrections ----------------------------------------------------------------------------

    @cached_property
    def unconstrained_corrected_sd(self) -> dict[str, Floats] | None:
        covariance = self._correction.covariance
        if covariance is None:
            return None
        space, _ = self._space_and_factor()
        sd = np.sqrt(np.diag(covariance))
        return {name: sd[where] for name, where in space.slices.items()}

    @cached_property
    def corrected_sd(self) -> dict[str, Floats] | None:
        covariance = self._correction.covariance
        if covariance is None:
            return None
        space, _ = self._space_and_factor()
        return corrected_sds(space, self._family, self._raw, covariance)

    @property
    def corrected_reason(self) -> str | None:
        return self._correction.reason

    @property
    def note(self) -> str:
        ratio = self._largest_ratio
        if ratio <= _TOLD_RATIO:
            return ""
        return (
            f"q's sds of theta are too small, by linear response up to {ratio:.3g} times: use "
            "global_posterior_.corrected_sd, quantile(q, corrected=True) and "
            "sample(n_draws, corrected=True)."
        )

    @cached_property
    def _largest_ratio(self):
        """The largest ratio of a corrected sd to q's, on either scale; 0 without a correction."""
        own, unconstrained = self.corrected_sd, self.unconstrained_corrected_sd
        if own is None or unconstrained is None:
            return 0.0
        pairs = [(own, self.sd), (unconstrained, self.unconstrained_sd)]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = [wide[name] / narrow[name] for wide, narrow in pairs for name in narrow]
        return max((float(np.nan_to_num(r, nan=0.0).max(initial=0.0)) for r in ratios), default=0.0)

    def _corrected_factor(self):
        """Return the normal with q's unconstrained means and the linear-response covariance."""
        covariance = self._correction.covariance
        if covariance is None:
            raise ValueError(
                f"corrected=True: there is no linear response. {self.corrected_reason}"
            )
        space, factor = self._space_and_factor()
        means = aligned(covariance[: space.size, : space.size])
        return FullFactors(factor.mean, torch.linalg.cholesky(means))

    def _factor(self, corrected):
        return self._corrected_factor() if corrected else self._space_and_factor()[1]

    def widest_factor(self) -> NormalFactors:
        """Return the normal of unconstrained globals by linear response, or q without one."""
        return self._factor(corrected=self._correction.covariance is not None)

    @property
    def size(self) -> int:
        """How many unconstrained numbers theta has."""
        return self._space_and_factor()[0].size

    # --- q --------------------------------------------------------------------------------------

    def _space_and_factor(self):
        raw = aligned(self._raw)
        space = self._model.global_space(raw.new_zeros(1, self._n_features))
        return space, self._family.factors(raw, space.size)

    def draw_unconstrained(self, noise: np.ndarray, corrected: bool = False) -> np.ndarray:
        """Map standard normals, shape (n_draws, size), to draws of the unconstrained globals."""
        return self._factor(corrected).draw(aligned(noise)).numpy()

    def draws(self, noise: np.ndarray, corrected: bool = False) -> dict[str, torch.Tensor]:
        """Map standard normals, shape (n_draws, size), to draws of the globals by name."""
        space, _ = self._space_and_factor()
        return space.draws(torch.as_tensor(self.draw_unconstrained(noise, corrected)))

    def sample(
        self, n_draws: int, random_state: Seed = None, corrected: bool = False
    ) -> dict[str, Floats]:
        """Draw globals.

        Parameters
        ----------
        n_draws : int
            Number of draws.
        random_state : int, RandomState or None, default=None
            Seed or generator.
        corrected : bool, default=False
            Whether to draw from the normal with the unconstrained means of q and the covariance by
            linear response, pushed through the bijections to the model's scale, in place of q. The
            sd of such draws of a transformed global is not `corrected_sd`, which is first order.

        Returns
        -------
        dict of str to ndarray of shape (n_draws, ...)

        Raises
        ------
        ValueError
            If corrected, and there is no correction: `corrected_reason` says why.
        """
        space, _ = self._space_and_factor()
        request = f"GlobalPosterior.sample(n_draws={n_draws}) of {space.size} numbers"
        require_memory(3 * int(n_draws) * space.size, request, "draw fewer at a time")
        noise = private_state(random_state).standard_normal((n_draws, space.size))
        return {name: value.numpy() for name, value in self.draws(noise, corrected).items()}

    def quantile(self, q: ArrayLike, corrected: bool = False) -> dict[str, Floats]:
        """Return quantiles of each global on the model's scale.

        Parameters
        ----------
        q : float or array-like
            Probabilities in [0, 1].
        corrected : bool, default=False
            Whether to take those of the draws of ``sample(n_draws, corrected=True)``, whose sd is
            not `corrected_sd`.

        Returns
        -------
        dict of str to ndarray
            The shape of `q` comes first. Exact where the bijection from the real line is
            elementwise; else (simplices, Cholesky factors) from 4,096 Sobol draws.

        Raises
        ------
        ValueError
            If corrected, and there is no correction: `corrected_reason` says why.
        """
        q, factor = probabilities(q), self._factor(corrected)
        space, _ = self._space_and_factor()
        return {name: space.quantiles(name, factor, q) for name in space.slices}

    def summary(self) -> "DataFrame":
        """Return a pandas frame with a row per number, for reports.

        Returns
        -------
        pandas.DataFrame
            Columns name, index, mean, sd, corrected_sd, 5%, 50%, 95%. "index" is the number's place
            in its global, a tuple, of names where there are some (of X's columns, of latents):
            () for a scalar. Quantiles are corrected ones, of draws whose sd is not `corrected_sd`;
            without a correction q's own, beside a corrected_sd of NaN.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        pandas = require("pandas", "pandas")
        return pandas.DataFrame(list(self.rows()), columns=list(_COLUMNS))

    def to_frame(self, name: str | None = None) -> "DataFrame":
        """Return a pandas frame with a row per number, labelled by its place.

        Parameters
        ----------
        name : str, default=None
            One global: its dimensions are the levels of the frame's index, names of X's columns and
            of latents where there are some. None: all, labelled as in "loadings[age, factor0]".

        Returns
        -------
        pandas.DataFrame
            Columns mean, sd, corrected_sd, 5%, 50%, 95%, as `summary` has them. Of a matrix,
            ``frame["mean"].unstack()`` is the matrix with its names.

        Raises
        ------
        ImportError
            If pandas is not installed.
        ValueError
            If there is no global of that name.

        Examples
        --------
        >>> import numpy as np
        >>> import pandas as pd
        >>> from skavi import FactorizedVI
        >>> from skavi.models import FactorAnalysis
        >>> X = np.random.default_rng(0).normal(size=(50, 3))
        >>> frame = pd.DataFrame(X, columns=["age", "height", "weight"])
        >>> found = FactorizedVI(FactorAnalysis(1)).fit(frame).global_posterior_
        >>> list(found.to_frame("mean").index)
        ['age', 'height', 'weight']
        >>> found.to_frame("loadings")["mean"].unstack().shape
        (3, 1)
        >>> list(found.to_frame().index[:2])
        ['noise_variance', 'loadings[age, factor0]']
        """
        pandas = require("pandas", "pandas")
        if name is not None and name not in self.mean:
            raise ValueError(f"name={name!r}: the globals are {', '.join(self.mean) or 'none'}.")
        rows = [row for row in self.rows() if name in (None, row[0])]
        columns, numbers = list(NUMBER_COLUMNS), [row[2:] for row in rows]
        if name is None:
            return pandas.DataFrame(numbers, index=[*map(label, rows)], columns=columns)
        places = [row[1] for row in rows]
        if any(len(place) > 1 for place in places):
            dims = self._model.global_dims().get(name)
            index = pandas.MultiIndex.from_tuples(places, names=dims)
        else:
            index = [place[0] if place else name for place in places]
        return pandas.DataFrame(numbers, index=index, columns=columns)

    def to_arviz(
        self, n_draws: int = 1000, random_state: Seed = None, corrected: bool = False
    ) -> Any:
        """Return draws as ArviZ's DataTree.

        Parameters
        ----------
        n_draws : int, default=1000
            Number of draws.
        random_state : int, RandomState or None, default=None
            Seed or generator.
        corrected : bool, default=False
            As in `sample`.

        Returns
        -------
        xarray.DataTree
            Group "posterior" with the globals by name, dimensions (chain, draw, ...), labelled by
            the names of X's columns and of latents. The estimator's own `to_arviz` adds the rows'
            latents, predictions and log likelihoods.

        Raises
        ------
        ImportError
            If arviz-base is not installed: ``pip install "skavi[arviz]"``.
        """
        draws = self.sample(n_draws, random_state, corrected)
        dims, coords = arviz_labels(self._model, self._feature_names, self._n_features)
        attrs = {"inference_library": "skavi"}
        used = {dim for names in dims.values() for dim in names}
        coords = {dim: labels for dim, labels in coords.items() if dim in used}
        return data_tree({"posterior": draws}, dims, coords, attrs)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield what `summary` has in each of its rows.

        Yields
        ------
        tuple
            Name, place, mean, sd, corrected sd, and quantiles.

        Examples
        --------
        >>> from skavi import FactorizedVI
        >>> from skavi.models import LinearModel
        >>> vi = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
        >>> [(name, place, round(mean, 6)) for name, place, mean, *_ in vi.global_posterior_.rows()]
        [('theta', (), 2.0)]
        """
        corrected = self.corrected_sd
        quantiles = self.quantile(SHOWN_QUANTILES, corrected=corrected is not None)
        labels = dimension_names(self._model, self._feature_names, self._n_features)
        for name, mean in self.mean.items():
            sd = np.full_like(mean, np.nan) if corrected is None else corrected[name]
            columns = np.stack([mean, self.sd[name], sd, *quantiles[name]], -1)
            for index in np.ndindex(mean.shape):
                place = place_named(labels.get(name, ()), index)
                yield name, place, *map(float, columns[index])

    def _repr_html_(self):
        size = sum(mean.size for mean in self.mean.values())
        rows = list(islice(self.rows(), _SHOWN_NUMBERS))
        note = shown(size, _SHOWN_NUMBERS, "numbers") + self.note
        return html_table(f"GlobalPosterior: {size} numbers", _COLUMNS, rows, note)

    def __repr__(self):
        try:
            shapes = ", ".join(f"{name}: {value.shape}" for name, value in self.mean.items())
        except LostThreadsError:  # a repr raises nothing
            return "GlobalPosterior(...)"
        return "\n".join([f"GlobalPosterior({shapes})", *filter(None, [self.note])])
