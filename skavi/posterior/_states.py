"""The posterior of the latents of given rows where these take finitely many values."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skavi._platform.array_types import Floats, Seed
from skavi._platform.html import html_table
from skavi._platform.memory import require_memory
from skavi._platform.optional_imports import require
from skavi._platform.random_state import private_state
from skavi.posterior._arviz import data_tree, row_labels
from skavi.posterior._quantiles import shown

if TYPE_CHECKING:
    from pandas import DataFrame

#: Rows of the table in a notebook, which a screen shows without scrolling.
_SHOWN_ROWS = 10


@dataclass(frozen=True)
class StatePosterior:
    """Factors q(z_n) of some rows over finitely many states.

    Attributes
    ----------
    probabilities : ndarray of shape (n_rows, n_states)
        Of each state; rows sum to 1.
    atoms : ndarray of shape (n_states, n_latents)
        The value of the latents in each state.
    index : array-like of shape (n_rows,) or None
        Labels of the rows: the index of X where it was a pandas frame. None: 0, 1, ...
    groups : ndarray of shape (n_rows,) or None
        Labels of the groups whose factors these are; None: every row has a factor of its own.
    names : tuple of str
        Names of the states, as `get_feature_names_out` has them.
    conditionals : ndarray of shape (n_rows, n_states, n_states) or None
        Probabilities of each row's state (last) given that of the row before, where factors know
        their neighbours: draws are then of all rows together. None: rows are independent.

    Examples
    --------
    >>> import numpy as np
    >>> from skavi.posterior import StatePosterior
    >>> posterior = StatePosterior(np.array([[0.9, 0.1]]), np.array([[0], [1]]))
    >>> posterior.most_probable, posterior.sample(10, random_state=0).shape
    (array([0]), (10, 1, 1))
    """

    probabilities: np.ndarray
    atoms: np.ndarray = field(repr=False)
    index: object = field(default=None, repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)
    conditionals: np.ndarray | None = field(default=None, repr=False, kw_only=True)
    groups: np.ndarray | None = field(default=None, repr=False, kw_only=True)

    @property
    def mean(self) -> Floats:
        """The probabilities: the means of the states' indicators."""
        return self.probabilities

    @property
    def sd(self) -> Floats:
        """Standard deviations of the states' indicators, shape (n_rows, n_states)."""
        return np.sqrt(self.probabilities * (1 - self.probabilities))

    @property
    def most_probable(self) -> NDArray[np.integer[Any]]:
        """The most probable state of each row, shape (n_rows,)."""
        return self.probabilities.argmax(1)

    @property
    def entropy(self) -> Floats:
        """Entropy of each row's state, in nats, shape (n_rows,)."""
        p = self.probabilities
        return -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)

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
            For a single categorical latent the number of its state.
        """
        request = f"StatePosterior.sample(n_draws={n_draws}) of {len(self.probabilities)} rows"
        n_numbers = 2 * int(n_draws) * self.probabilities.size
        require_memory(n_numbers, request, "draw fewer at a time")
        uniform = private_state(random_state).random_sample((n_draws, len(self.probabilities), 1))
        if self.conditionals is None:
            below = np.cumsum(self.probabilities, 1)[:, :-1]
            return self.atoms[(uniform > below).sum(-1)]
        below = np.cumsum(self.conditionals, 2)[..., :-1]
        states = np.empty((n_draws, len(self.probabilities)), dtype=np.int64)
        now = (uniform[:, 0] > np.cumsum(self.probabilities[0])[:-1]).sum(-1)
        states[:, 0] = now
        for n in range(1, len(self.probabilities)):
            now = (uniform[:, n] > below[n, now]).sum(-1)
            states[:, n] = now
        return self.atoms[states]

    def to_frame(self) -> "DataFrame":
        """Return the probabilities as a pandas frame, a column a state.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        pandas = require("pandas", "pandas")
        return pandas.DataFrame(self.probabilities, index=self.index, columns=list(self.names))

    def to_arviz(self, n_draws: int = 1000, random_state: Seed = None) -> Any:
        """Return draws as ArviZ's DataTree, group "posterior" with "z" (chain, draw, row, latent).

        Parameters
        ----------
        n_draws : int, default=1000
            Draws a row.
        random_state : int, RandomState or None, default=None
            Seed or generator.

        Returns
        -------
        xarray.DataTree

        Raises
        ------
        ImportError
            If arviz-base is not installed: ``pip install "skavi[arviz]"``.
        """
        draws = self.sample(n_draws, random_state)
        coords = {
            "row": row_labels(self.index, len(self.probabilities)),
            "latent": np.array([f"latent{i}" for i in range(self.atoms.shape[1])]),
        }
        attrs = {"inference_library": "skavi"}
        return data_tree({"posterior": {"z": draws}}, {"z": ("row", "latent")}, coords, attrs)

    def _repr_html_(self):
        n_rows = len(self.probabilities)
        labels = row_labels(self.index, n_rows)
        rows = [
            (label, *(f"{p:.3f}" for p in row))
            for label, row in zip(labels[:_SHOWN_ROWS], self.probabilities, strict=False)
        ]
        title = f"StatePosterior: {n_rows} rows, {len(self.names)} states (probabilities)"
        return html_table(title, ("row", *self.names), rows, shown(n_rows, _SHOWN_ROWS, "rows"))
