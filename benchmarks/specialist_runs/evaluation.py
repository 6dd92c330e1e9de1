"""The one evaluator: marginal log-likelihood of held-out rows, by importance sampling.

Every contestant hands over what it knows of a row: log p(x_n, z_n) at its own point estimate (the
mean of q(theta) is ours), and where to draw z_n from. Proposals for linear models are normal, at
the row's mode and with the inverse curvature there, both by Newton's method; those of networks are
the contestant's own factors. All are widened by a fifth, so that no weight is unbounded.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
N_DRAWS = 1000
_WIDER = 1.2
_STEPS, _STILL, _HALVINGS = 100, 1e-8, 30
Cells = Callable[[Tensor], Tensor]


def importance_sampled(log_joint: Callable, mean: Tensor, root: Tensor, n_draws=N_DRAWS) -> Tensor:
    """Return log mean of p(x_n, z_n) / q(z_n) over draws z_n = mean + 1.2 root e, (n_rows,).

    Parameters
    ----------
    log_joint : callable
        From latents (n_rows, k) to log p(x_n, z_n), shape (n_rows,).
    mean : Tensor of shape (n_rows, k)
    root : Tensor of shape (n_rows, k, k)
        Lower triangular.
    """
    generator = torch.Generator().manual_seed(0)
    k, root, weights = mean.shape[-1], _WIDER * root, []
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    with torch.no_grad():
        for _ in range(n_draws):
            e = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
            z = mean + (root @ e.unsqueeze(-1)).squeeze(-1)
            log_q = -0.5 * (e**2).sum(-1) - 0.5 * k * LOG_2PI - log_det
            weights.append(log_joint(z) - log_q)
    return torch.logsumexp(torch.stack(weights), 0) - math.log(n_draws)


def linear_rows(kernel: Cells, constant: Tensor, loadings, centre) -> float:
    """Return nats a row of x_nd ~ exp(kernel_nd(eta_nd) + constant_n), eta = W z_n + centre.

    Parameters
    ----------
    kernel : callable
        From eta (n_rows, n_columns) to what depends on it of each cell's log density, 0 where a
        cell is missing; concave.
    constant : Tensor of shape (n_rows,)
    loadings : array of shape (n_columns, k)
    centre : array of shape (n_columns,) or (n_rows, n_columns)
    """
    W, centre = (
        torch.as_tensor(np.asarray(each), dtype=torch.float64) for each in (loadings, centre)
    )
    k = W.shape[1]

    def log_joint(z):
        return kernel(z @ W.mT + centre).sum(-1) + constant - 0.5 * (z**2 + LOG_2PI).sum(-1)

    mean, precision = modes(kernel, W, centre, len(constant), k, log_joint)
    root = torch.linalg.cholesky(torch.linalg.inv(precision))
    return float(importance_sampled(log_joint, mean, root).mean())


def modes(kernel, W, centre, n_rows, k, log_joint):
    """Return the rows' modes, and the negative Hessians there, by Newton's method."""
    z = torch.zeros(n_rows, k, dtype=torch.float64)
    for _ in range(_STEPS):
        eta = (z @ W.mT + centre).requires_grad_(True)
        (slope,) = torch.autograd.grad(kernel(eta).sum(), eta, create_graph=True)
        (curved,) = torch.autograd.grad(slope.sum(), eta)
        precision = torch.eye(k, dtype=W.dtype) - torch.einsum("nd,di,dj->nij", curved, W, W)
        gradient = slope.detach() @ W - z
        step = torch.linalg.solve(precision, gradient.unsqueeze(-1)).squeeze(-1)
        if float((gradient * step).sum(-1).max()) < _STILL:
            break
        length, value = torch.ones(n_rows, 1, dtype=W.dtype), log_joint(z)
        for _ in range(_HALVINGS):
            worse = ~(log_joint(z + length * step) >= value)
            if not bool(worse.any()):
                break
            length[worse] *= 0.5
        z = torch.where(worse.unsqueeze(-1), z, z + length * step)
    return z, precision


def observed(X) -> tuple[Tensor, Tensor]:
    """Return the cells, 0 where missing, and 1 where observed."""
    X = torch.as_tensor(np.asarray(X), dtype=torch.float64)
    there = ~torch.isnan(X)
    return torch.where(there, X, 0.0), there.to(X)


def counts(X, loadings, centre) -> float:
    """Return nats a row of Poisson counts; `centre` holds the rows' offsets."""
    x, there = observed(X)
    constant = -(there * torch.lgamma(x + 1)).sum(-1)
    return linear_rows(lambda eta: there * (x * eta - eta.exp()), constant, loadings, centre)


def overdispersed(X, loadings, centre, dispersion) -> float:
    """Return nats a row of counts of mean m = exp(eta) and variance m + dispersion m^2."""
    x, there = observed(X)
    level = torch.as_tensor(np.asarray(dispersion), dtype=x.dtype).log()
    size = (-level).exp()
    factorials = torch.lgamma(x + size) - torch.lgamma(size) - torch.lgamma(x + 1)

    def kernel(eta):
        odds = eta + level
        return there * (x * odds - (x + size) * torch.nn.functional.softplus(odds))

    return linear_rows(kernel, (there * factorials).sum(-1), loadings, centre)


def own_factors(log_joint: Callable, mean, sd) -> float:
    """Return nats a row with the contestant's own independent normal factors as proposals."""
    mean, sd = (torch.as_tensor(np.asarray(each)) for each in (mean, sd))
    return float(importance_sampled(log_joint, mean, torch.diag_embed(sd)).mean())


def row_terms(X, loadings, centre) -> float:
    """Return nats a row of the best bounds of Poisson counts, under normal q(z_n) of their own.

    max over m, s of sum_d [x_d eta_d - exp(eta_d + W_d^2 s^2 / 2) - log x_d!] - KL(q(z_n) || N(0,
    I)) with eta = W m + centre, concave in m and log s: L-BFGS finds the one maximum. All cells are
    observed. This is what variational fits of Poisson log-normal models maximise.
    """
    x, W, centre = (
        torch.as_tensor(np.asarray(each), dtype=torch.float64) for each in (X, loadings, centre)
    )
    shape = len(x), W.shape[1]
    mean = torch.zeros(shape, dtype=x.dtype, requires_grad=True)
    log_sd = torch.full(shape, -1.0, dtype=x.dtype, requires_grad=True)
    search = {"max_iter": 1000, "history_size": 20, "line_search_fn": "strong_wolfe"}
    still = {"tolerance_grad": 1e-7, "tolerance_change": 1e-12}
    solver = torch.optim.LBFGS([mean, log_sd], **search, **still)

    def terms():
        variance, eta = (2 * log_sd).exp(), mean @ W.mT + centre
        fit = x * eta - (eta + 0.5 * variance @ (W**2).mT).exp() - torch.lgamma(x + 1)
        return fit.sum(-1) + (0.5 * (1 - mean**2 - variance) + log_sd).sum(-1)

    def loss():
        solver.zero_grad()
        value = -terms().sum()
        value.backward()
        return value

    solver.step(loss)
    return float(terms().detach().mean())


def answers(X, loadings, centre) -> float:
    """Return nats a row of 0/1 answers."""
    x, there = observed(X)

    def kernel(eta):
        return there * (x * eta - torch.nn.functional.softplus(eta))

    return linear_rows(kernel, torch.zeros(len(x), dtype=x.dtype), loadings, centre)


def numbers(X, loadings, centre, variance) -> float:
    """Return nats a row of normal cells."""
    x, there = observed(X)
    variance = torch.as_tensor(np.asarray(variance), dtype=x.dtype).expand(x.shape[1])
    constant = -0.5 * (there * (LOG_2PI + variance.log())).sum(-1)
    return linear_rows(
        lambda eta: -0.5 * there * (x - eta) ** 2 / variance, constant, loadings, centre
    )
