"""The posterior of the globals, on the model's own scale."""

from functools import cached_property
from itertools import islice

import numpy as np
import torch

from skavi._numerics.aligned import aligned
from skavi._platform.html import html_table
from skavi._platform.memory import require_memory
from skavi._platform.optional_imports import require
from skavi._platform.random_state import private_state
from skavi.distributions import defaults_of
from skavi.families import Family
from skavi.models import LatentVariableModel
from skavi.posterior._quantiles import SHOWN_QUANTILES, percent, probabilities, shown

#: Numbers of the table in a notebook, which a screen shows without scrolling.
_SHOWN_NUMBERS = 10


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

    # Moments are computed when they are read, since callbacks get a posterior in every iteration.

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
        pairs = {name: space.moments(name, factor) for name in space.slices}
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
            The shape of `q` comes first. Exact where the bijection from the real line is
            elementwise; else (simplices, Cholesky factors) from 4,096 Sobol draws.
        """
        q, (space, factor) = probabilities(q), self._space_and_factor()
        return {name: space.quantiles(name, factor, q) for name in space.slices}

    def summary(self):
        """Return a pandas frame with a row per number: name, index, mean, sd, 5%, 50%, 95%.

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
        columns = ["name", "index", "mean", "sd", *map(percent, SHOWN_QUANTILES)]
        return pandas.DataFrame(list(self._summary_rows()), columns=columns)

    def _summary_rows(self):
        quantiles = self.quantile(SHOWN_QUANTILES)
        for name, mean in self.mean.items():
            columns = np.stack([mean, self.sd[name], *quantiles[name]], -1)
            for index in np.ndindex(mean.shape):
                yield name, index, *map(float, columns[index])

    def _repr_html_(self):
        header = ("name", "index", "mean", "sd", *map(percent, SHOWN_QUANTILES))
        size = sum(mean.size for mean in self.mean.values())
        rows = list(islice(self._summary_rows(), _SHOWN_NUMBERS))
        note = shown(size, _SHOWN_NUMBERS, "numbers")
        return html_table(f"GlobalPosterior: {size} numbers", header, rows, note)

    def __repr__(self):
        shapes = ", ".join(f"{name}: {value.shape}" for name, value in self.mean.items())
        return f"GlobalPosterior({shapes})"
