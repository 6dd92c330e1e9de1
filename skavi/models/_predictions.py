"""What a model says of rows beside their density: draws, means and moments, names of dimensions."""

import torch
from torch import Tensor

from skavi.families import NormalFactors
from skavi.models._global_space import GlobalSpace, Theta


class Predictions:
    """Nothing yet: a model overrides what it can say."""

    def simulate(self, theta: Theta, n_samples: int, n_features: int = 1) -> tuple[Tensor, Tensor]:
        """Draw n_samples rows (X, Z) given one theta, from torch's current generator."""
        raise NotImplementedError(f"{type(self).__name__} does not define simulate.")

    def predicted_mean(self, theta: Theta, z: Tensor) -> Tensor:
        """Return E[x_n | z_n, theta], shape (n_rows, n_features)."""
        raise NotImplementedError(f"{type(self).__name__} does not define predicted_mean.")

    def cell_moments(self, theta: Theta, z: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of every cell of rows like X given z and theta."""
        raise NotImplementedError(f"{type(self).__name__} does not define cell_moments.")

    def cells_from(self, mean: Tensor, variance: Tensor, filled: bool) -> tuple[Tensor, Tensor]:
        """Return a number for each column and its variance, from what predictions have of a row.

        `filled`: cells as they might be observed; else expectations.
        """
        return mean, variance

    def forecast(
        self, last: NormalFactors, q_theta: NormalFactors, space: GlobalSpace, n_steps: int
    ) -> tuple[Tensor, Tensor]:
        """Return means and variances, (n_steps, n_features), of the rows that follow a series.

        `last` is the factor of its last row, of one row; draws come from torch's current generator.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not define forecast: its latents are not in a chain, as "
            "those of a MarkovModel are."
        )

    def last_rows(self, X: Tensor) -> Tensor:
        """Return the places of the rows at which the series in X end."""
        return torch.tensor([len(X) - 1], device=X.device)

    def global_dims(self) -> dict[str, tuple[str, ...]]:
        """Return names of globals' dimensions for ArviZ; "feature" and "latent" have labels."""
        return {}

    def global_labels(self) -> dict[str, tuple[list[str], ...]]:
        """Return labels along each dimension of the globals that have some; others are counted."""
        return {}

    def log_likelihood(self, theta: Theta, z: Tensor, X: Tensor) -> Tensor:
        r"""Return :math:`\log p(x_n \mid z_n, \theta)`, shape (n_rows,), in nats."""
        raise NotImplementedError(f"{type(self).__name__} does not define log_likelihood.")

    def replicate(self, theta: Theta, z: Tensor, X: Tensor) -> Tensor:
        """Draw rows x_n | z_n, theta, from torch's current generator.

        Columns of X that the model does not explain are kept.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define replicate.")
