"""Factors that know their neighbours: q(z) = q(z_1) prod_n q(z_n | z_{n-1}). Here normal ones.

A row's numbers describe its marginal, z_n = m_n + L_n w_n with w_n standard normal, and its link
A_n to the row before:

    w_n = G_n^-1 (A_n w_{n-1} + e_n),    G_n G_n' = I + A_n A_n',    e_n standard normal.

Any A_n leaves w_n standard normal, so that each pair of neighbours is described by their own
numbers alone, and so is each term of the ELBO of a Markov model: its Hessian is a band. The entropy
is sum_n log det L_n - log det G_n, up to its constant; the precision of all rows is
block-tridiagonal. The first row's A is linked to nothing, and is 0 where the entropy is largest.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solve_banded
from torch import Tensor

from skavi._numerics.aligned import aligned
from skavi.families._categorical import Categorical, CategoricalFactors
from skavi.families._chained_states import ChainedStates
from skavi.families._normal import LOG_2PI, Family, FullFactors, FullNormal


@dataclass(frozen=True)
class ChainFactors(FullFactors):
    """Normal factors of rows in a chain.

    `scale` holds lower Cholesky factors L_n of the marginal covariances, `link` the matrices A_n.

    Examples
    --------
    >>> import torch
    >>> from skavi.families import ChainFactors
    >>> ones = torch.ones(3, 1, 1)
    >>> factors = ChainFactors(torch.zeros(3, 1), ones, ones)
    >>> factors.neighbour_covariance().flatten()  # with the row before
    tensor([0.0000, 0.7071, 0.7071])
    """

    link: Tensor

    @property
    def root(self) -> Tensor:
        """The matrices G_n, shape (n, k, k)."""
        square = self.link @ self.link.mT
        if square.shape[-1] == 1:
            return (1 + square).sqrt()  # several times faster than a batch of Cholesky factors
        return torch.linalg.cholesky(square + torch.eye(square.shape[-1]).to(square))

    @property
    def _log_det_root(self):
        return self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def entropy(self):
        """Entropy of each row given the row before, in nats, shape (n,)."""
        return super().entropy() - self._log_det_root

    def neighbour_covariance(self):
        whitened = torch.linalg.solve_triangular(self.root, self.link, upper=False)
        covariance = self.scale[1:] @ whitened[1:] @ self.scale[:-1].mT
        return torch.cat([torch.zeros_like(self.scale[:1]), covariance])

    def term_draws(self, noise):
        """Draw every row beside the one before: even rows given odd ones, and the reverse."""
        free = noise.expand(*noise.shape[:-2], *self.mean.shape)
        before = torch.cat([torch.zeros_like(free[..., :1, :]), free[..., :-1, :]], -2)
        right = (self.link @ before.unsqueeze(-1)) + free.unsqueeze(-1)
        given = torch.linalg.solve_triangular(self.root, right, upper=False).squeeze(-1)
        row = torch.arange(len(self.mean), device=noise.device)
        draws = []
        for parity in (0, 1):
            own = row % 2 == parity
            linked = (own & (row > 0)).unsqueeze(-1)
            draws.append((self.draw(torch.where(linked, given, free)), own))
        return draws

    def joint_draw(self, noise):
        """Map standard normals e (..., n, k) to draws of all rows together."""
        n, k = self.mean.shape
        band, root, link = np.zeros((2 * k, n, k)), self.root.cpu(), self.link.cpu()
        for i in range(k):
            for j in range(k):
                if i >= j:
                    band[i - j, :, j] = root[:, i, j]
                band[k + i - j, :-1, j] = -link[1:, i, j]
        right = noise.reshape(-1, n * k).mT.cpu().numpy()
        solved = solve_banded((2 * k - 1, 0), band.reshape(2 * k, n * k), right)
        return self.draw(aligned(solved.T).to(noise).reshape(noise.shape))

    def joint_log_prob(self, noise):
        """Log density of each row of ``joint_draw(noise)`` given the row before, in nats."""
        given = self._log_det_root[1:]
        padded = torch.cat([torch.zeros_like(self.mean[:1, 0]), given])
        return -0.5 * (noise**2 + LOG_2PI).sum(-1) - self.log_det_scale + padded

    def alone(self, noise):
        link = torch.cat([torch.zeros_like(self.link[:1]), self.link[1:]])
        root = torch.cat([torch.eye(link.shape[-1]).to(link)[None], self.root[1:]])
        after = torch.cat([link[1:], torch.zeros_like(link[:1])])
        precision = torch.linalg.cholesky(root.mT @ root + after.mT @ after)
        w = torch.linalg.solve_triangular(precision.mT, noise.unsqueeze(-1), upper=True)
        before = torch.cat([torch.zeros_like(w[:1]), w[:-1]])
        return (root @ w - link @ before).squeeze(-1)


class Chain(Family):
    r"""Factors in which each row depends on the row before: for Markov models.

    :math:`q(z) = q(z_1) \prod_{n>1} q(z_n \mid z_{n-1})`. Real latents have normal factors with a
    block-tridiagonal precision: for linear normal models the exact posterior given theta. Latents
    that take finitely many values have any conditional probabilities: given theta that is exact,
    and found by the forward-backward algorithm. The default of `FactorizedVI` for models with
    latents in a chain.

    Parameters of one row: those of `FullNormal` for its marginal, then the :math:`k^2` numbers of
    its link to the row before; or logits for each state of the row before.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.families import Chain, DiagonalNormal
    >>> from skavi.models import LocalLevel
    >>> X, model = [[1.0], [2.0], [1.5]], LocalLevel(level_sd=0.5, noise_sd=1.0)
    >>> chain = FactorizedVI(model, family=Chain()).fit(X)
    >>> independent = FactorizedVI(model, family=DiagonalNormal()).fit(X)
    >>> bool(chain.elbo_ > independent.elbo_)
    True
    """

    links_rows = True

    def n_parameters(self, n_latents):
        return FullNormal().n_parameters(n_latents) + n_latents**2

    def factors(self, raw, n_latents):
        n_own = FullNormal().n_parameters(n_latents)
        own = FullNormal().factors(raw[..., :n_own], n_latents)
        link = raw[..., n_own:].reshape(*raw.shape[:-1], n_latents, n_latents)
        return ChainFactors(own.mean, own.scale, link)

    def raw(self, factors):
        if isinstance(factors, CategoricalFactors):
            return ChainedStates.apart(factors).raw()
        k = factors.mean.shape[-1]
        own = FullNormal().raw(factors)
        if isinstance(factors, ChainFactors):
            link = factors.link
        else:
            link = factors.mean.new_zeros(*factors.mean.shape, k)
        return torch.cat([own, link.flatten(-2)], -1)

    def steps(self, factors):
        if isinstance(factors, ChainedStates):
            p = factors.log_conditionals[..., 1:].exp()
            return Categorical.length(p).flatten(1)
        own = FullNormal().steps(factors)
        # The entropy's curvature in a link is 1 / (1 + a^2), and that of the rest is alike.
        size = (1 + factors.link.square().sum((-2, -1))).sqrt()
        links = size.unsqueeze(-1).expand(*size.shape, factors.link[0].numel())
        return torch.cat([own, math.sqrt(0.5) * links], -1)
