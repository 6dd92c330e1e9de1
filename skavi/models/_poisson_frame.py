"""The best affine change of the latents of a count model, and its curvature.

z_n -> A^-1 (z_n - b), W -> W A, mean -> mean + W b leaves every log rate of the means where it is
(and so does the like with covariates in the place of b's 1), but rows and columns in turn, and
Newton steps along straight lines, approach the best A and b by small steps only (Luttinen & Ilin
2010, "Transformations in variational Bayesian factor analysis to speed up learning"). With the
rates l_nd held, a latent's best variance is one over P_nk = 1 + sum_d l_nd E[w_dk^2], a loading's
is one over Q_dk = p_dk + sum_n l_nd E[z_nk^2], and
what depends on A and b of the ELBO is

    F = -1/2 {sum_nk log P_nk + sum_dk log Q_dk + sum_n |z_n|^2 + sum_d p_d (w_d - loc_d)^2},

sums over rows with their weights, and w_d with its mean as the last number.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skavi._data.process_ranks import total
from skavi.models._poisson_rates import Counts, Side

#: Newton steps: about three are usual, some ten at the start of a fit.
_STEPS = 30
#: Largest entry of a step's change: exp is then still near its second-order series.
_LARGEST = 0.5
#: Of the largest curvature: the least assumed.
_LEAST_CURVATURE = 1e-3
#: Of the gain so far: a step that promises less is the last one.
_NEGLIGIBLE = 0.1
_HALVINGS = 20


@dataclass(frozen=True)
class Prior:
    """Independent normal priors of all numbers of the columns.

    Attributes
    ----------
    loc, precision : Tensor of shape (n_columns, p)
        For loadings, coefficients of what is known, and mean.
    """

    loc: Tensor
    precision: Tensor


@dataclass(frozen=True)
class Frame:
    """Means of rows' latents and of columns, and the second moments in which they enter F.

    Attributes
    ----------
    prior : Prior
    weights : Tensor of shape (n_rows, 1)
    z : Tensor of shape (n_rows, p)
        Means of k latents, then what is known, then 1.
    w : Tensor of shape (n_columns, p)
        Means of the loadings, of the coefficients, and of the mean.
    of_rows : Tensor of shape (n_rows, k * k)
        sum_d l_nd W_d W_d', flat.
    of_columns : Tensor of shape (n_columns, p * p)
        sum_n l_nd z_n z_n', flat.
    rest_of_rows, rest_of_columns : Tensor of shape (n, k)
        What is left of P and Q: priors, and the variances of the other side.
    """

    prior: Prior
    weights: Tensor
    z: Tensor
    w: Tensor
    of_rows: Tensor
    of_columns: Tensor
    rest_of_rows: Tensor
    rest_of_columns: Tensor

    @classmethod
    def of(cls, prior: Prior, counts: Counts, rows: Side, columns: Side, rates: Tensor) -> "Frame":
        """Return the frame of factors at their expected rates."""
        k, p, weights = counts.n_latents(rows), columns.mean.shape[-1], counts.weights
        z = torch.nn.functional.pad(rows.mean, (0, 1), value=1.0)
        weighted = rates * weights.unsqueeze(-1)
        of_columns = total(weighted.mT @ torch.cat([_squares(z), rows.variance[:, :k]], -1))
        of_rows = rates @ torch.cat([_squares(columns.mean[:, :k]), columns.variance[:, :k]], -1)
        return cls(
            prior,
            weights.unsqueeze(-1),
            z,
            columns.mean,
            of_rows[:, : k * k],
            of_columns[:, : p**2],
            1 + of_rows[:, k * k :],
            prior.precision[:, :k] + of_columns[:, p**2 :],
        )

    @property
    def _k(self):
        return self.rest_of_rows.shape[-1]

    @property
    def _p(self):
        return self.z.shape[-1]

    @property
    def row_precision(self) -> Tensor:
        """P, of shape (n_rows, k)."""
        return self.rest_of_rows + self.of_rows[:, :: self._k + 1]

    @property
    def column_precision(self) -> Tensor:
        """Q, of shape (n_columns, k)."""
        return self.rest_of_columns + self.of_columns[:, :: self._p + 1][:, : self._k]

    def value(self) -> float:
        """Return F, in nats."""
        of_rows = self.row_precision.log() + self.z[:, : self._k] ** 2
        prior = (self.prior.precision * (self.w - self.prior.loc) ** 2).sum()
        rest = self.column_precision.log().sum() + prior
        return -0.5 * float(total((self.weights * of_rows).sum()) + rest)

    def changed(self, change: Tensor) -> "Frame":
        """Return the frame after the change (k, p) of A and b: exp of it."""
        k = self._k
        matrix, inverse = exponentials(change)
        A, back = matrix[:k, :k].contiguous(), inverse.mT.contiguous()
        return replace(
            self,
            z=self.z @ inverse.mT,
            w=self.w @ matrix,
            of_rows=self.of_rows @ torch.kron(A, A),
            of_columns=self.of_columns @ torch.kron(back, back),
        )

    def system(self) -> tuple[Tensor, Tensor]:
        """Return the gradient of F in a change, shape (k, p), and its negative Hessian.

        The Hessian has shape (k p, k p). That of the columns' terms couples the entries
        of a column of the change, that of the rows' those of a row; the second order of exp couples
        T_im with T_mj.
        """
        k, p, z, w = self._k, self._p, self.z, self.w
        p_weights, q_weights = self.weights / self.row_precision, 1 / self.column_precision
        P, Q = self.of_rows.reshape(-1, k, k), self.of_columns.reshape(-1, p, p)
        over_rows = total(p_weights.mT @ self.of_rows).reshape(k, k, k)
        over_columns = (q_weights.mT @ self.of_columns).reshape(k, p, p)
        at, second = torch.arange(k, device=w.device), total((self.weights * z).mT @ z)
        forward = w[:, :k].mT @ (self.prior.precision * (w - self.prior.loc))
        forward[:, :k] += over_rows[at, :, at].mT
        backward = over_columns[at, at] + second[:k]
        hessian = w.new_zeros(k, p, k, p)
        middle = torch.einsum("ab,ij->iabj", torch.eye(k).to(w), 0.5 * (forward + backward))
        hessian[:, :k] += middle
        hessian += hessian.permute(2, 3, 0, 1).clone()
        for j in range(p):
            hessian[:, j, :, j] += (w[:, :k] * self.prior.precision[:, j : j + 1]).mT @ w[:, :k]
        for j in range(k):
            r, q = P[:, :, j] / self.row_precision[:, j : j + 1], Q[:, j] * q_weights[:, j : j + 1]
            hessian[:, j, :, j] += over_rows[j] - 2 * total((self.weights * r).mT @ r)
            hessian[j, :, j, :] += over_columns[j] - 2 * q.mT @ q + second
        return backward - forward, hessian.reshape(k * p, k * p)

    def turned(self) -> tuple["Frame", float]:
        """Return the frame after Newton steps to a maximum of F, and the gain in nats."""
        frame, first = self, self.value()
        value = first
        for _ in range(_STEPS):
            gradient, hessian = frame.system()
            sizes, vectors = positive(hessian)
            step = (vectors @ ((vectors.mT @ gradient.reshape(-1)) / sizes)).reshape(gradient.shape)
            promised = 0.5 * float((gradient * step).sum())
            length = min(1.0, _LARGEST / max(float(step.abs().max()), _LARGEST))
            for _ in range(_HALVINGS):
                there = frame.changed(length * step)
                new = there.value()
                if new > value:
                    break
                length *= 0.5
            else:
                break
            frame, value = there, new
            if promised <= _NEGLIGIBLE * (value - first):
                break
        return frame, value - first

    def tangents(self) -> Tensor:
        """Return what a change does to means and log sds of the columns.

        Shape (k p, n_columns, 2 p).
        """
        k, p, n = self._k, self._p, len(self.w)
        moved = self.w.new_zeros(k, p, n, 2 * p)
        Q = self.of_columns.reshape(n, p, p)
        for i in range(k):
            for j in range(p):
                moved[i, j, :, j] = self.w[:, i]
            moved[i, :, :, p + i] = (Q[:, i] / self.column_precision[:, i : i + 1]).mT
        return moved.reshape(k * p, n, 2 * p)


def _squares(table):
    """Return the products of all pairs of a row's numbers, flat."""
    return (table.unsqueeze(-1) * table.unsqueeze(-2)).flatten(1)


def exponentials(change: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp of a change (k, p), as a matrix of p rows, and its inverse."""
    whole = torch.nn.functional.pad(change, (0, 0, 0, change.shape[1] - change.shape[0]))
    matrix, inverse = torch.linalg.matrix_exp(torch.stack([whole, -whole]))
    return matrix, inverse


def positive(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Return absolute eigenvalues, bounded away from zero, and eigenvectors."""
    sizes, vectors = torch.linalg.eigh(hessian)
    sizes = sizes.abs()
    return sizes.clamp_min(_LEAST_CURVATURE * float(sizes.max())), vectors
