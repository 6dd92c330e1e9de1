"""The posterior of the latents of given rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from skavi._numerics.aligned import aligned
from skavi._platform.array_types import Floats, Seed
from skavi._platform.forks_and_threads import guarded
from skavi._platform.html import html_table
from skavi._platform.memory import require_memory
from skavi._platform.optional_imports import require
from skavi._platform.random_state import private_state
from skavi.families import ChainFactors
from skavi.posterior._arviz import data_tree, row_labels
from skavi.posterior._quantiles import SHOWN_QUANTILES, percent, probabilities, shown

if TYPE_CHECKING:
    from pandas import DataFrame

#: Rows of the table in a notebook, which a screen shows without scrolling.
_SHOWN_ROWS = 10
#: Latents of the table in a notebook: as many columns as fit the page.
_SHOWN_LATENTS = 6


@guarded
@dataclass(frozen=True)
class LatentPosterior:
    """Factors q(z_n) of some rows.

    Attributes
    ----------
    mean, sd : ndarray of shape (n_rows, n_latents)
        Posterior means and standard deviations.
    scale : ndarray of shape (n_rows, n_latents, n_latents)
        Lower Cholesky factors of the covariances.
    link : ndarray of shape (n_rows, n_latents, n_latents) or None
        Links of each row to the row before, as in `skavi.families.ChainFactors`; None: rows are
        independent.
    index : array-like of shape (n_rows,) or None
        Labels of the rows: the index of X where it was a pandas frame. None: 0, 1, ...
    groups : ndarray of shape (n_rows,) or None
        Labels of the groups whose factors these are, in order of first appearance in X; None:
        every row has a factor of its own.
    names : tuple of str or None
        Names of the latents, as `get_feature_names_out` has them. None: "latent0", ...

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> vi = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
    >>> posterior = vi.posterior([[2.0]])
    >>> posterior.sample(100, random_state=0).shape
    (100, 1, 1)
    >>> list(posterior.to_frame(quantiles=(0.5,)))
    ['factorizedvi0_mean', 'factorizedvi0_sd', 'factorizedvi0_50%']
    """

    mean: np.ndarray
    sd: np.ndarray
    scale: np.ndarray = field(repr=False)
    index: object = field(default=None, repr=False)
    names: tuple[str, ...] | None = field(default=None, repr=False)
    link: np.ndarray | None = field(default=None, repr=False, kw_only=True)
    groups: np.ndarray | None = field(default=None, repr=False, kw_only=True)

    def sample(self, n_draws: int, random_state: Seed = None) -> Floats:
        """Draw latents, of all rows together where factors know their neighbours.

        Parameters
        ----------
        n_draws : int
            Draws a row.
        random_state : int, RandomState or None, default=None
            Seed or generator.

        Returns
        -------
        ndarray of shape (n_draws, n_rows, n_latents)
        """
        request = f"LatentPosterior.sample(n_draws={n_draws}) of {self.mean.shape} latents"
        require_memory(2 * int(n_draws) * self.mean.size, request, "draw fewer at a time")
        noise = private_state(random_state).standard_normal((n_draws, *self.mean.shape))
        if self.link is None:
            return self.mean + np.einsum("nij,dnj->dni", self.scale, noise)
        factors = ChainFactors(*map(aligned, (self.mean, self.scale, self.link)))
        return factors.joint_draw(aligned(noise)).numpy()

    def quantile(self, q: ArrayLike) -> Floats:
        """Return quantiles of each latent.

        Parameters
        ----------
        q : float or array-like
            Probabilities in [0, 1].

        Returns
        -------
        ndarray of shape (..., n_rows, n_latents)
            The shape of `q` comes first.
        """
        return self.mean + self.sd * ndtri(probabilities(q))[..., None, None]

    def cdf(self, values: ArrayLike) -> Floats:
        """Return the posterior probabilities of less than `values`, for each number.

        Parameters
        ----------
        values : array-like of shape (n_rows, n_latents)

        Returns
        -------
        ndarray of shape (n_rows, n_latents)
        """
        return ndtr((np.asarray(values) - self.mean) / self.sd)

    def to_frame(self, quantiles: Sequence[float] = SHOWN_QUANTILES) -> "DataFrame":
        """Return a pandas frame with one row for each row of X.

        Parameters
        ----------
        quantiles : sequence of float, default=(0.05, 0.5, 0.95)
            Probabilities in [0, 1].

        Returns
        -------
        pandas.DataFrame
            For each latent its mean, sd and quantiles: columns "<name>_mean", "<name>_sd",
            "<name>_5%", ...

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        pandas = require("pandas", "pandas")
        values = [self.mean, self.sd, *self.quantile(quantiles)]
        labels = ["mean", "sd", *map(percent, quantiles)]
        columns = [f"{name}_{label}" for name in self._names() for label in labels]
        table = np.stack(values, -1).reshape(len(self.mean), -1)
        return pandas.DataFrame(table, index=self.index, columns=columns)

    def to_arviz(self, n_draws: int = 1000, random_state: Seed = None) -> Any:
        """Return draws as ArviZ's DataTree.

        Parameters
        ----------
        n_draws : int, default=1000
            Draws a row.
        random_state : int, RandomState or None, default=None
            Seed or generator.

        Returns
        -------
        xarray.DataTree
            Group "posterior" with "z", dimensions (chain, draw, row, latent). The estimator's own
            `to_arviz` adds the globals, predictions and log likelihoods.

        Raises
        ------
        ImportError
            If arviz-base is not installed: ``pip install "skavi[arviz]"``.
        """
        draws = self.sample(n_draws, random_state)
        attrs = {"inference_library": "skavi"}
        return data_tree({"posterior": {"z": draws}}, {"z": ("row", "latent")}, self.coords, attrs)

    @property
    def coords(self) -> dict[str, np.ndarray]:
        """Labels of rows and latents, in ArviZ's form."""
        return {"row": row_labels(self.index, len(self.mean)), "latent": np.array(self._names())}

    def _names(self):
        return self.names or tuple(f"latent{i}" for i in range(self.mean.shape[1]))

    def _repr_html_(self):
        n_rows, n_latents = self.mean.shape
        rows = [
            (label, *(f"{m:.3g} ± {s:.2g}" for m, s in zip(mean, sd, strict=True)))
            for label, mean, sd in zip(
                self.coords["row"][:_SHOWN_ROWS],
                self.mean[:, :_SHOWN_LATENTS],
                self.sd[:, :_SHOWN_LATENTS],
                strict=False,
            )
        ]
        return html_table(
            f"{type(self).__name__}: {n_rows} rows, {n_latents} latents (mean ± sd)",
            ("row", *self._names()[:_SHOWN_LATENTS]),
            rows,
            shown(n_rows, _SHOWN_ROWS, "rows") + shown(n_latents, _SHOWN_LATENTS, "latents"),
        )
