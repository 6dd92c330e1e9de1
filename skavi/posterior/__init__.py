"""Posteriors of a fit: of the latents of given rows, and of the globals."""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from scipy.special import ndtri

from skavi._numerics.aligned import aligned
from skavi._platform.html import html_table
from skavi._platform.memory import require_memory
from skavi._platform.optional_imports import require
from skavi._platform.random_state import private_state
from skavi.distributions import defaults_of
from skavi.families import Family
from skavi.models import LatentVariableModel
from skavi.models._global_moments import moments, quantiles
from skavi.posterior._arviz import data_tree, row_labels

_QUANTILES = (0.05, 0.5, 0.95)
_SHOWN_ROWS, _SHOWN_LATENTS = 10, 6


@dataclass(frozen=True)
class LatentPosterior:
    """Factors q(z_n) of some rows.

    Attributes
    ----------
    mean, sd : ndarray of shape (n_rows, n_latents)
        Posterior means and standard deviations.
    scale : ndarray of shape (n_rows, n_latents, n_latents)
        Lower Cholesky factors of the covariances.
    index : array-like of shape (n_rows,) or None
        Labels of the rows: the index of X where it was a pandas frame. None: 0, 1, ...
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

    def sample(self, n_draws, random_state=None):
        """Draw latents.

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
        return self.mean + np.einsum("nij,dnj->dni", self.scale, noise)

    def quantile(self, q):
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
        return self.mean + self.sd * ndtri(_probabilities(q))[..., None, None]

    def to_frame(self, quantiles=_QUANTILES):
        """Return a pandas frame with a row a row of X.

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
        labels = ["mean", "sd", *map(_percent, quantiles)]
        columns = [f"{name}_{label}" for name in self._names() for label in labels]
        table = np.stack(values, -1).reshape(len(self.mean), -1)
        return pandas.DataFrame(table, index=self.index, columns=columns)

    def to_arviz(self, n_draws=1000, random_state=None):
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
    def coords(self):
        """Labels of rows and latents, as ArviZ takes them."""
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
            f"LatentPosterior: {n_rows} rows, {n_latents} latents (mean ± sd)",
            ("row", *self._names()[:_SHOWN_LATENTS]),
            rows,
            _shown(n_rows, _SHOWN_ROWS, "rows") + _shown(n_latents, _SHOWN_LATENTS, "latents"),
        )


class GlobalPosterior:
    """The factor q(theta), read on the model's own (constrained) scale.

    Attributes
    ----------
    mean, sd : dict of str to ndarray
        Posterior means and standard deviations by the names of ``model.global_prior``.
    unconstrained_mean, unconstrained_sd : dict of str to ndarray
        Of the same globals on the real line, where q is normal (for example log tau).

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> vi = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
    >>> round(float(vi.global_posterior_.mean["theta"]), 6)
    2.0
    >>> vi.global_posterior_.summary().round(3)
        name index  mean     sd     5%  50%    95%
    0  theta    ()   2.0  1.403 -0.308  2.0  4.308
    """

    def __init__(
        self, model: LatentVariableModel, family: Family, raw: np.ndarray, n_features: int
    ):
        self._model, self._family, self._raw = model, family, raw
        self._n_features = n_features

    # Moments are taken when they are read: callbacks see a posterior after every iteration.

    @cached_property
    def unconstrained_mean(self):
        space, factor = self._space_and_factor()
        return {name: factor.mean[where].numpy().copy() for name, where in space.slices.items()}

    @cached_property
    def unconstrained_sd(self):
        space, factor = self._space_and_factor()
        return {name: factor.sd[where].numpy().copy() for name, where in space.slices.items()}

    @property
    def mean(self):
        return {name: mean for name, (mean, _) in self._mean_and_sd.items()}

    @property
    def sd(self):
        return {name: sd for name, (_, sd) in self._mean_and_sd.items()}

    @cached_property
    def _mean_and_sd(self):
        space, factor = self._space_and_factor()
        pairs = {name: moments(space, name, factor) for name in space.slices}
        return {name: (m.numpy().copy(), sd.numpy().copy()) for name, (m, sd) in pairs.items()}

    def _space_and_factor(self):
        raw = aligned(self._raw)
        space = self._model.global_space(raw.new_zeros(1, self._n_features))
        return space, self._family.factors(raw, space.size)

    def draw_unconstrained(self, noise: np.ndarray) -> np.ndarray:
        """Map standard normals, shape (n_draws, size), to draws of the unconstrained globals."""
        _, factor = self._space_and_factor()
        return factor.draw(aligned(noise)).numpy()

    def sample(self, n_draws, random_state=None):
        """Draw globals.

        Parameters
        ----------
        n_draws : int
            Number of draws.
        random_state : int, RandomState or None, default=None
            Seed or generator.

        Returns
        -------
        dict of str to ndarray of shape (n_draws, ...)
        """
        space, _ = self._space_and_factor()
        request = f"GlobalPosterior.sample(n_draws={n_draws}) of {space.size} numbers"
        require_memory(3 * int(n_draws) * space.size, request, "draw fewer at a time")
        noise = private_state(random_state).standard_normal((n_draws, space.size))
        u = torch.as_tensor(self.draw_unconstrained(noise))
        with defaults_of(u):
            theta = {
                name: space.bijections[name](u[:, where].reshape(n_draws, *space.raw_shapes[name]))
                for name, where in space.slices.items()
            }
        return {name: value.numpy() for name, value in theta.items()}

    def quantile(self, q):
        """Return quantiles of each global on the model's scale.

        Parameters
        ----------
        q : float or array-like
            Probabilities in [0, 1].

        Returns
        -------
        dict of str to ndarray
            The shape of `q` comes first. Exact where the bijection from the real line works
            number by number; of 4,096 Sobol draws where it does not (simplices, Cholesky factors).
        """
        q, (space, factor) = _probabilities(q), self._space_and_factor()
        return {name: quantiles(space, name, factor, q) for name in space.slices}

    def summary(self):
        """Return a pandas frame with a row a number: name, index, mean, sd, 5%, 50%, 95%.

        Returns
        -------
        pandas.DataFrame
            "index" is the number's place in its global, a tuple: () for a scalar.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        pandas = require("pandas", "pandas")
        columns = ["name", "index", "mean", "sd", *map(_percent, _QUANTILES)]
        return pandas.DataFrame(list(self._summary_rows()), columns=columns)

    def _summary_rows(self):
        quantiles = self.quantile(_QUANTILES)
        for name, mean in self.mean.items():
            columns = np.stack([mean, self.sd[name], *quantiles[name]], -1)
            for index in np.ndindex(mean.shape):
                yield name, index, *map(float, columns[index])

    def _repr_html_(self):
        header = ("name", "index", "mean", "sd", *map(_percent, _QUANTILES))
        size = sum(mean.size for mean in self.mean.values())
        rows = list(islice(self._summary_rows(), _SHOWN_ROWS))
        note = _shown(size, _SHOWN_ROWS, "numbers")
        return html_table(f"GlobalPosterior: {size} numbers", header, rows, note)

    def __repr__(self):
        shapes = ", ".join(f"{name}: {value.shape}" for name, value in self.mean.items())
        return f"GlobalPosterior({shapes})"


def _probabilities(q):
    q = np.asarray(q, dtype=np.float64)
    if not ((q >= 0) & (q <= 1)).all():
        raise ValueError(f"q={q.tolist()!r}: probabilities must be in [0, 1].")
    return q


def _percent(q):
    return f"{100 * q:g}%"


def _shown(n, most, what):
    return f"The first {most} of {n} {what}. " if n > most else ""
