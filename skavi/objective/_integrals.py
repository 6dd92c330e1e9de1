"""Log likelihoods of rows given theta, log p(x_n | theta), with their latents integrated out."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skavi._curvature import gradient_of
from skavi._numerics.aligned import aligned
from skavi._numerics.quadrature import product_rule, sobol_normal
from skavi._numerics.student_t import log_density, radii

#: Nats: log weights under a normal that vary by less are constant up to rounding: it is the row's
#: posterior, and the integral exact.
CONSTANT = 1e-9
#: Nats by which a finer rule may differ from one that is good enough.
AGREEMENT = 1e-4
#: A row is given up whose finest rules would, at their pace, differ by so many times more: what is
#: smooth gains pace, a kink keeps it. A decoder with kinks took 28 s for 400 rows, most of it in
#: vain. So many rules are tried first.
_HOPE, _PACED = 10.0, 3
#: Nodes along a latent, each rule about twice as fine as the one before, and nodes in all at most.
_NODES, _MOST_NODES = (1, 3, 7, 15, 31, 63), 4096
#: The same about the prior, where rows have several modes.
_PRIOR_NODES = (31, 63, 127, 255, 511, 1023)
#: Latents up to which a product rule is tried: 7 nodes along each of 4 are 2,401.
MOST_LATENTS = 4
#: Importance draws a row, and the degrees of freedom of their Student t: with 5 the variance of
#: weights is finite under any log-concave density. Not measured: order of magnitude.
_DRAWS, _DEGREES = 1024, 5.0
#: Draws at which log weights are tested for being constant.
TESTED = 16
#: Newton steps to a row's mode: about 5 are usual. Halvings of one: down to a millionth.
STEPS, _HALVINGS = 60, 20
#: Newton decrement, nats, at which a mode is found: far below any tolerance here.
AT_MODE = 1e-12
#: Share of the largest curvature below which one is taken for a direction without any.
_LEAST_CURVATURE = 1e-9
#: Numbers that one evaluation may hold: 64 MB in double precision.
NUMBERS = 8_000_000

EXACT, QUADRATURE, SAMPLING = "exact", "quadrature", "importance sampling"


@dataclass(frozen=True)
class RowIntegral:
    """What integrals over rows that are independent given theta share: each is a unit."""

    objective: Any
    X: Tensor

    def by_unit(self, values: Tensor) -> Tensor:
        """Return sums over the rows of each unit of values (..., n_rows)."""
        return values

    def shared(self, values: Tensor) -> Tensor:
        """Return values of units (..., n_units) shared out equally over their rows."""
        return values


@dataclass(frozen=True)
class FiniteIntegral(RowIntegral):
    """The exact sum over the states of finite latents; the same attributes as `RealIntegral`."""

    @property
    def how(self) -> np.ndarray:
        """How each row is integrated, shape (n_rows,)."""
        return np.full(len(self.X), EXACT, dtype=object)

    def at(self, u: Tensor) -> Tensor:
        """Return log p(x_n | theta) at unconstrained globals (n_draws, size): (n_draws, n_rows)."""
        n_at_once = max(1, NUMBERS // (self.X.numel() * self.objective.width))
        parts = [self.objective.log_joints_of_states(part, self.X) for part in u.split(n_at_once)]
        return torch.logsumexp(torch.cat(parts), -1)

    def log_weights(self, u: Tensor) -> Tensor:
        """Return the log importance weights of rows that are sampled, for one u: there are none."""
        return u.new_zeros(1, len(self.X))


@dataclass(frozen=True)
class RealIntegral(RowIntegral):
    """Integrals over real latents of rows that are independent given theta.

    About each row's mode, with its curvature there: exact where the row's posterior is normal, by
    adaptive Gauss-Hermite quadrature where doubling the nodes changes nothing (about the mode, or
    else about the prior, which rows of several modes need), else by importance sampling from a
    multivariate Student t.

    Attributes
    ----------
    objective : Objective
    X : Tensor of shape (n_rows, n_features)
    centre, precision : Tensor of shape (n_rows, k), and (n_rows, k, k)
        Where modes are sought from, and what stands for curvature where there is none.
    nodes : Tensor of shape (n_rows,)
        Nodes along each latent; 0 for importance sampling.
    about_prior : Tensor of bool of shape (n_rows,)
        Whether nodes are the prior's, not the mode's.
    how : ndarray of str of shape (n_rows,)
        "exact", "quadrature" or "importance sampling".
    agreement : float
        Nats by which rules of quadrature may differ.
    """

    centre: Tensor
    precision: Tensor
    nodes: Tensor
    about_prior: Tensor
    how: np.ndarray
    agreement: float

    @classmethod
    def of(cls, objective, X, factors, u, agreement) -> "RealIntegral":
        """Choose each row's rule, so that it serves at all the unconstrained globals u."""
        n, k = factors.mean.shape
        precision = torch.linalg.inv(factors.covariance()) if k else factors.mean.new_zeros(n, 0, 0)
        nodes, how = torch.ones(n, dtype=torch.long), np.full(n, EXACT, dtype=object)
        integral = cls(objective, X, factors.mean, precision, nodes, nodes == 0, how, agreement)
        return integral._settled(u) if k else integral

    def at(self, u: Tensor) -> Tensor:
        """Return log p(x_n | theta) at unconstrained globals (n_draws, size): (n_draws, n_rows).

        -inf where the density is not a number.
        """
        if (self.how == EXACT).all():
            parts = [self._of_normals(part) for part in u.split(self._n_at_once(1))]
            return _known(torch.cat(parts))
        most = int(self.nodes.max()) ** self.centre.shape[1]
        if bool((self.nodes == 0).any()):
            most = max(most, _DRAWS)
        parts = [self._at(part) for part in u.split(self._n_at_once(most))]
        return _known(torch.cat(parts))

    def log_weights(self, u: Tensor) -> Tensor:
        """Return log importance weights, (n_draws, n_rows), at one u; constant if not sampled."""
        logs = u.new_zeros(_DRAWS, len(self.X))
        index = torch.nonzero(self.nodes == 0)[:, 0]
        if len(index):
            logs[:, index] = self._weigh(u[None], index, self._modes(u[None]))[:, 0]
        return logs

    def _n_at_once(self, n_nodes):
        k = self.centre.shape[1]
        a_draw = len(self.X) * max(n_nodes * max(k, self._width), k * k)
        return max(1, NUMBERS // max(1, a_draw))

    @property
    def _width(self):
        return self.objective.model.n_explained(self.X)

    def _at(self, u):
        values, modes = u.new_empty(len(u), len(self.X)), self._modes(u)
        for about_prior in self.about_prior.unique():
            where = self._priors(u) if about_prior else modes
            for n in self.nodes[self.about_prior == about_prior].unique():
                rows = (self.nodes == n) & (self.about_prior == about_prior)
                index = torch.nonzero(rows)[:, 0]
                values[:, index] = self._integrated(u, index, where, int(n))
        return values

    def _of_normals(self, u):
        """Return the integrals of terms that are quadratic in latents: a step is at the mode.

        What the step promises is not added: at extreme globals rounding would exceed it.
        """
        z = self.centre.expand(len(u), -1, -1)
        if not z.shape[-1]:
            return self._terms(u, z, self._every)
        _, gradient, curvature = self._derivatives(u, z, self._every)
        lower, failed = torch.linalg.cholesky_ex(curvature)
        step = torch.cholesky_solve(gradient.unsqueeze(-1), lower)[..., 0]
        log_det = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        width = 0.5 * (z.shape[-1] * math.log(2 * math.pi) - log_det)
        values = self._terms(u, z + step, self._every) + width
        return torch.where(failed > 0, math.nan, values)

    # --- the choice of rules --------------------------------------------------------------------

    def _settled(self, u):
        """Return the integral with a rule for each row."""
        modes, unsettled = self._modes(u), torch.zeros(len(self.X), dtype=torch.long)
        exact = self._is_normal(u, modes)
        nodes = self._agreed(u, modes, torch.where(exact, 1, unsettled), _NODES)
        about_prior = nodes == 0
        if bool(about_prior.any()):
            nodes = self._agreed(u, self._priors(u), nodes, _PRIOR_NODES)
            about_prior = about_prior & (nodes > 0)
        if not self.objective.model.coupling.independent and len(nodes.unique()) > 1:
            # Terms need all rows at once, and so one rule.
            nodes, about_prior = unsettled, unsettled > 0
            exact = unsettled > 0
        how = np.where(nodes == 0, SAMPLING, np.where(exact, EXACT, QUADRATURE)).astype(object)
        return replace(self, nodes=nodes, about_prior=about_prior, how=how)

    def _is_normal(self, u, where):
        """Say which rows' posteriors are normal: their log weights are constant."""
        noise = aligned(sobol_normal(TESTED, self.centre.shape[-1], 0)).to(u)
        logs = self._log_ratio(u, self._every, where, noise)
        logs = logs + 0.5 * noise.square().sum(-1)[:, None, None]
        spread = (logs.amax(0) - logs.amin(0)).amax(0)
        return spread < CONSTANT * (1 + logs.abs().amax((0, 1)))

    def _agreed(self, u, where, nodes, finer):
        """Return the least of ever finer rules that agrees with the one before, for rows with 0.

        Rows whose rules approach one another too slowly to agree in the end are given up early.
        """
        nodes, k, coarse = nodes.clone(), self.centre.shape[-1], None
        fine, left = u.new_zeros(len(u), len(nodes)), nodes == 0
        finer = [n for n in finer if k <= MOST_LATENTS and n**k <= _MOST_NODES]
        apart = u.new_full((len(nodes),), math.inf)
        for i, n in enumerate(finer, 1):
            if not bool(left.any()):
                break
            index = torch.nonzero(left)[:, 0]
            index = index if self.objective.model.coupling.independent else self._every
            fine[:, index] = self._integrated(u, index, where, n)
            if coarse is not None:
                before, apart = apart, (fine - coarse).abs().amax(0)
                nodes[left & (apart < self.agreement)] = n
                pace = (apart / before).clamp_max(1.0) ** (len(finer) - i)
                hopeless = (apart * pace > _HOPE * self.agreement) & (i > _PACED)
                left &= (nodes == 0) & ~hopeless
            coarse = fine.clone()
        return nodes

    @property
    def _every(self):
        return torch.arange(len(self.X))

    # --- sums over nodes and draws --------------------------------------------------------------

    def _integrated(self, u, index, where, n):
        if not n:
            logs = self._weigh(u, index, where)
            return torch.logsumexp(logs, 0) - math.log(len(logs))
        k = self.centre.shape[1]
        nodes, weights = (aligned(each).to(u) for each in product_rule((n,) * k))
        logs = self._log_ratio(u, index, where, nodes)
        shift = weights.log() + 0.5 * nodes.square().sum(-1) + 0.5 * k * math.log(2 * math.pi)
        return torch.logsumexp(logs + shift[:, None, None], 0)

    def _weigh(self, u, index, where):
        """Return log p(x_n, z | theta) - log t(z) at draws from a Student t, (n_draws, S, n)."""
        k = self.centre.shape[1]
        points = sobol_normal(_DRAWS, k + 1, 0)
        radius = aligned(radii(points[:, k], _DEGREES)).to(u)
        noise = aligned(points[:, :k]).to(u) * radius[:, None]
        logs = self._log_ratio(u, index, where, noise)
        density = log_density(noise.square().sum(-1), _DEGREES, k)
        return logs - density[:, None, None]

    def _log_ratio(self, u, index, where, noise):
        """Return log p(x_n, z | theta) + log |L| at z = centre + L noise: (n_noise, S, n_index)."""
        centre, scale = (part[:, index] for part in where)
        z = centre + torch.einsum("snij,mj->msni", scale, noise)
        shape = len(noise) * len(u), len(index), z.shape[-1]
        repeated = u.repeat(len(noise), 1)
        values = self._terms(repeated, z.reshape(shape), index)
        log_det = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return values.reshape(len(noise), len(u), len(index)) + log_det

    def _terms(self, u, z, index):
        X = self.X if len(index) == len(self.X) else self.X[index]
        return self.objective.log_terms_at(u, z, X)

    # --- where rows' posteriors are ---------------------------------------------------------------

    def _priors(self, u):
        """Return centres of the prior of rows' latents for each u, and diagonal L of their sds."""
        pairs = [self.objective.model.initial_locals(self._theta(each), self.X) for each in u]
        centre, sd = (torch.stack(part) for part in zip(*pairs, strict=True))
        return centre, torch.diag_embed(sd)

    def _theta(self, u):
        return self.objective.space.constrain(u)

    def _modes(self, u):
        """Return modes of rows (S, n, k) for each u, and L, with L L' their inverse curvature."""
        z = self.centre.expand(len(u), -1, -1).clone()
        if not z.shape[-1]:
            return z, z.new_zeros(*z.shape, 0)
        every, left = self._every, torch.arange(len(u), device=u.device)
        for _ in range(STEPS):
            at, here = u[left], z[left]
            value, gradient, curvature = self._derivatives(at, here, every)
            step = _ascent(curvature, gradient)
            far = (step * gradient).sum(-1) > AT_MODE * (1 + value.abs())
            step = torch.where(far.unsqueeze(-1), step, 0.0)  # whatever rows stand beside it
            z[left], rose = climbed(
                lambda i, to, at=at: self._terms(at[i], to, every), here, value, step
            )
            left = left[(far & rose).any(-1)]
            if not len(left):
                break
        return z, self._scales(u, z, every)

    def _scales(self, u, z, every):
        _, _, curvature = self._derivatives(u, z, every)
        curvature = torch.where(_is_flat(curvature)[..., None, None], self.precision, curvature)
        lower = torch.linalg.cholesky(curvature)
        eye = torch.eye(lower.shape[-1]).to(lower)
        return torch.linalg.solve_triangular(lower, eye, upper=False).mT

    def _derivatives(self, u, z, every):
        """Return values (S, n), gradients (S, n, k) and negative Hessians (S, n, k, k) in z."""
        k = z.shape[-1]
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            value = self._terms(u, z, every)
            (gradient,) = gradient_of(value.sum(), (z,), create_graph=True)
            rows = [gradient_of(gradient[..., i].sum(), (z,))[0] for i in range(k)]
        curvature = -torch.stack(rows, -2)
        curvature = 0.5 * (curvature + curvature.mT)
        sound = curvature.isfinite().all(-1).all(-1)[..., None, None]
        gradient = torch.nan_to_num(gradient.detach(), nan=0.0, posinf=0.0, neginf=0.0)
        return value.detach(), gradient, torch.where(sound, curvature.detach(), self.precision)


def _known(values):
    return torch.where(values.isnan(), -math.inf, values)


def _is_flat(curvature):
    """Say which matrices (..., k, k) are not positive definite, or nearly not."""
    lower, failed = torch.linalg.cholesky_ex(curvature)
    least = _LEAST_CURVATURE * curvature.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    return (failed > 0) | (lower.diagonal(dim1=-2, dim2=-1).square().amin(-1) < least)


def _ascent(curvature, gradient):
    """Return Newton steps; along directions that are not concave, as if these were.

    Eigenvalues are an order of magnitude dearer than Cholesky factors, which most rows have.
    """
    flat, column = _is_flat(curvature), gradient.unsqueeze(-1)
    lower, _ = torch.linalg.cholesky_ex(curvature)
    step = torch.cholesky_solve(column, lower)[..., 0]
    if bool(flat.any()):
        size, axes = torch.linalg.eigh(curvature[flat])
        size = size.abs()
        size = torch.maximum(size, _LEAST_CURVATURE * size.amax(-1, keepdim=True))
        along = (axes.mT @ column[flat])[..., 0] / size
        step[flat] = (axes @ along.unsqueeze(-1))[..., 0]
    return step


def climbed(values_at, z: Tensor, value: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Take the longest part of each step, halved again and again, that does not descend.

    Parameters
    ----------
    values_at : callable
        The values of the draws at an index, at z of these, with the axes of `value`; z has further
        ones.

    Returns
    -------
    z : Tensor
    rose : Tensor of bool
        Which values rose.
    """
    share, moved = torch.ones_like(value), torch.zeros_like(value)
    rose = torch.zeros_like(value, dtype=torch.bool)
    left = torch.arange(len(value), device=value.device)
    shape = -1, *value.shape[1:], *[1] * (z.dim() - value.dim())
    for _ in range(_HALVINGS):  # of the draws alone that have a value which fell
        with torch.no_grad():
            new = values_at(left, z[left] + share[left].reshape(shape) * step[left])
        found, rose[left] = new >= value[left], new > value[left]
        moved[left] = torch.where(found, share[left], 0.0)
        share[left] = torch.where(found, share[left], 0.5 * share[left])
        left = left[~found.reshape(len(found), -1).all(-1)]
        if not len(left):
            break
    return z + moved.reshape(shape) * step, rose
