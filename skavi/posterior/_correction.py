"""What linear response adds to q(theta): the covariance of its parameters, and sds from it."""

from dataclasses import dataclass

import numpy as np
import torch

from skavi._numerics.aligned import aligned


@dataclass(frozen=True)
class Correction:
    """The linear-response covariance of q(theta)'s raw parameters, or why there is none.

    Attributes
    ----------
    covariance : ndarray of shape (n_parameters, n_parameters), or None
        Means of the unconstrained globals come first.
    reason : str or None
        A sentence where there is no covariance.
    """

    covariance: np.ndarray | None
    reason: str | None = None

    @classmethod
    def without(cls, reason: str) -> "Correction":
        """Return a correction that only says why it has no covariance."""
        # Torch's words and reprs of users' classes may look like markup.
        return cls(None, reason.replace("<", "(").replace(">", ")"))


def corrected_sds(space, family, raw, covariance) -> dict[str, np.ndarray]:
    """Return sds of the globals on the model's own scale, by the delta method.

    Parameters
    ----------
    space : GlobalSpace
    family : Family
        Of q(theta).
    raw : ndarray
        Its raw parameters.
    covariance : ndarray of shape (len(raw), len(raw))
        Of the raw parameters.
    """
    at, covariance, sds = aligned(raw).requires_grad_(True), aligned(covariance), {}
    with torch.enable_grad():
        factor = family.factors(at, space.size)
        for name in space.slices:
            mean, _ = space.moments(name, factor)
            slopes = [
                torch.autograd.grad(each, at, retain_graph=True)[0] for each in mean.reshape(-1)
            ]
            J = torch.stack(slopes) if slopes else covariance.new_zeros(0, len(at))
            variance = ((J @ covariance) * J).sum(1)
            sds[name] = variance.sqrt().reshape(mean.shape).detach().numpy().copy()
    return sds
