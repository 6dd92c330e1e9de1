"""Factor analysis and probabilistic PCA with a posterior over every global."""

import numpy as np
import torch
from torch import Tensor
from torch.distributions import InverseGamma, Normal

from skavi.families import LOG_2PI, DiagonalFactors, DiagonalNormal, Family, FullFactors
from skavi.models._base import HierarchicalModel


class FactorAnalysis(HierarchicalModel):
    """Linear normal model: x_n ~ N(W z_n + m, diag(v)), z_n ~ N(0, I), with W, m and v latent.

    ``noise="isotropic"`` (one v) is probabilistic PCA, ``"diagonal"`` factor analysis. Priors:
    loadings W ~ N(0, loading_scale^2), mean m ~ N(mean_loc, mean_scale^2) and noise variance
    v ~ InverseGamma(noise_shape, noise_scale). Scales left at None are weakly informative, taken
    from the training data column by column (``"diagonal"``) or over all columns (``"isotropic"``).

    Parameters
    ----------
    n_components : int, default=2
        Number of latents a row.
    noise : {"isotropic", "diagonal"}, default="isotropic"
        One noise variance for all columns, or one a column.
    loading_scale : float or array of shape (n_features,), default=None
        Prior sd of the loadings, in units of X. None: the columns' standard deviation.
    mean_loc, mean_scale : float or array of shape (n_features,), default=None
        Prior mean and sd of the mean. None: the columns' means, and 10 standard deviations.
    noise_shape : float, default=1.0
        Shape of the inverse gamma prior.
    noise_scale : float or array of shape (n_features,), default=None
        Its scale, in squared units of X. None: a hundredth of the columns' variance.

    Notes
    -----
    Globals: "loadings" (n_features, n_components), "mean" (n_features,) and "noise_variance", a
    scalar or (n_features,). All expectations are closed-form; the coordinate updates are those of
    Bishop (1999), "Variational principal components", with a fully factorized q(W).

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> from skavi.models import FactorAnalysis
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> vi = FactorizedVI(FactorAnalysis(n_components=2)).fit(X)
    >>> vi.global_posterior_.mean["loadings"].shape
    (4, 2)
    """

    def __init__(
        self,
        n_components=2,
        noise="isotropic",
        *,
        loading_scale=None,
        mean_loc=None,
        mean_scale=None,
        noise_shape=1.0,
        noise_scale=None,
    ):
        self.n_components = n_components
        self.noise = noise
        self.loading_scale = loading_scale
        self.mean_loc = mean_loc
        self.mean_scale = mean_scale
        self.noise_shape = noise_shape
        self.noise_scale = noise_scale

    def check(self):
        self._require_integer("n_components", 1)
        self._require("noise", self.noise in ("isotropic", "diagonal"), '"isotropic" or "diagonal"')
        self._require_positive("noise_shape")
        for name in ("loading_scale", "mean_scale", "noise_scale"):
            self._require_vector(name, positive=True)
        self._require_vector("mean_loc")

    def check_data(self, X):
        n_features = X.shape[1]
        for name in ("loading_scale", "mean_loc", "mean_scale", "noise_scale"):
            size = np.size(getattr(self, name))
            if size not in (1, n_features):
                raise ValueError(
                    f"{type(self).__name__}({name}=...): {name} has {size} numbers, but X has "
                    f"{n_features} features: give one number, or one a feature."
                )
        if self.noise == "isotropic" and np.size(self.noise_scale) != 1:
            raise ValueError(
                f"{type(self).__name__}(noise='isotropic') has one noise variance, but noise_scale "
                f"has {np.size(self.noise_scale)} numbers: give one, or noise='diagonal'."
            )

    # --- the model ------------------------------------------------------------------------------

    def n_latents(self, n_features):
        return self.n_components

    def global_prior(self, n_features):
        self._require_adapted()
        zeros = torch.zeros(n_features)
        scale = (zeros + torch.as_tensor(self.loading_scale)).unsqueeze(-1)
        shape = torch.as_tensor(self.noise_shape, dtype=zeros.dtype)
        noise_scale = torch.as_tensor(self.noise_scale, dtype=zeros.dtype)
        if self.noise == "diagonal":
            noise_scale = zeros + noise_scale
        return {
            "loadings": Normal(0.0, scale.expand(n_features, self.n_components)),
            "mean": Normal(
                zeros + torch.as_tensor(self.mean_loc), zeros + torch.as_tensor(self.mean_scale)
            ),
            "noise_variance": InverseGamma(shape, noise_scale),
        }

    def global_dims(self):
        variance = {"noise_variance": ("feature",)} if self.noise == "diagonal" else {}
        return {"loadings": ("feature", "latent"), "mean": ("feature",), **variance}

    def _require_adapted(self):
        scales = (self.loading_scale, self.mean_loc, self.mean_scale, self.noise_scale)
        if any(scale is None for scale in scales):
            raise ValueError(
                "FactorAnalysis takes the prior scales left at None from data: use the fitted "
                "estimator's model_, or set loading_scale, mean_loc, mean_scale and noise_scale."
            )

    def local_prior(self, theta):
        return Normal(torch.zeros(self.n_components), 1.0)

    def likelihood(self, z, theta):
        return Normal(self.predicted_mean(theta, z), theta["noise_variance"].sqrt())

    def predicted_mean(self, theta, z):
        return z @ theta["loadings"].mT + theta["mean"]

    def log_local(self, theta, z, X):
        variance = theta["noise_variance"]
        residual = ((X - self.predicted_mean(theta, z)) ** 2 / variance).sum(-1)
        log_det = (variance.log() + LOG_2PI).expand(X.shape[-1]).sum(-1)
        return -0.5 * (residual + log_det + (z**2 + LOG_2PI).sum(-1))

    # --- where to start -------------------------------------------------------------------------

    def adapted(self, X, weights):
        total = weights.sum()
        mean = weights @ X / total
        variance = weights @ (X - mean) ** 2 / total
        overall = variance.mean()
        rounding = 1e-24 * (weights @ X**2 / total)  # what a constant column's variance may be
        overall = overall if overall > rounding.mean() else torch.ones_like(overall)
        if self.noise == "diagonal":
            variance = torch.where(variance > rounding, variance, overall)
        else:
            variance = overall
        defaults = {
            "loading_scale": variance.sqrt(),
            "mean_loc": mean,
            "mean_scale": 10 * variance.sqrt(),
            "noise_scale": 0.01 * variance,
        }
        left_open = {n: v.numpy() for n, v in defaults.items() if getattr(self, n) is None}
        return type(self)(**(self.get_params() | left_open))

    def initial_globals(self, X, weights):
        """Probabilistic PCA of scaled columns (Tipping & Bishop 1999, eq. 7-8)."""
        n_features, k = X.shape[1], self.n_components
        scale = torch.as_tensor(self.loading_scale).to(X)
        total = weights.sum()
        mean = weights @ X / total
        rows = (X - mean) / scale * (weights / total).sqrt().unsqueeze(-1)
        values, vectors = torch.linalg.eigh(rows.mT @ rows)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        kept = min(k, n_features)
        rest = values[kept:].mean() if kept < n_features else 0.01 * values.mean()
        rest = rest.clamp_min(1e-3 * values.mean().clamp_min(1e-3))
        loadings = X.new_zeros(n_features, k)
        loadings[:, :kept] = (
            vectors[:, :kept] * (values[:kept] - rest).clamp_min(1e-2 * rest).sqrt()
        )
        variance = rest * scale**2 if self.noise == "diagonal" else rest * (scale**2).mean()
        if self.noise == "diagonal":
            variance = variance.expand(n_features).clone()
        loadings = loadings * (scale.unsqueeze(-1) if scale.dim() else scale)
        return {"loadings": loadings, "mean": mean, "noise_variance": variance}

    # --- closed forms ---------------------------------------------------------------------------

    def has_closed_form(self, family: Family, global_family: Family) -> bool:
        return True

    def has_coordinate_updates(self, family: Family, global_family: Family) -> bool:
        return isinstance(global_family, DiagonalNormal)

    def expected_log_local(self, factors, globals_, X):
        """E_q log p(z_n, x_n | W, m, v) for normal q(z_n) and a joint normal q(W, m, log v).

        Under q tilted by 1/v, (W, m) stays normal with the same covariance and its mean moved by
        -Cov((W_d, m_d), log v_d); so with e_d = E[1/v_d] every term is a second moment.
        """
        q = self._moments(globals_, X.shape[1])
        m, second = factors.mean, self._second_moment(factors)
        residual = X - m @ q.loadings.mT - q.mean
        coupling = q.loadings.mT @ (q.precision.unsqueeze(-1) * q.loadings)
        spread = (factors.covariance() * coupling).sum((-2, -1)) + (
            second * (q.precision[:, None, None] * q.covariance).sum(0)
        ).sum((-2, -1))
        log_det = (q.log_variance + LOG_2PI).sum()
        fit = (residual**2) @ q.precision + spread + log_det
        prior = (m**2 + factors.sd**2 + LOG_2PI).sum(-1)
        return -0.5 * (fit + prior)

    def local_optimum(self, globals_, X, family, start=None):
        """q(z_n) = N(P^-1 W' e (x_n - m), P^-1), P = I + E[W' e W]; diagonal: sds P_kk^-1/2."""
        q = self._moments(globals_, X.shape[1])
        k = self.n_components
        scaled = q.precision.unsqueeze(-1) * q.loadings
        spread = (q.precision[:, None, None] * q.covariance).sum(0)
        precision = torch.eye(k).to(X) + scaled.mT @ q.loadings + spread[:k, :k]
        pull = (X - q.mean) @ scaled - spread[:k, k]
        mean = torch.linalg.solve(precision, pull.mT).mT
        if isinstance(family, DiagonalNormal):
            return DiagonalFactors(mean, precision.diagonal().rsqrt().expand_as(mean))
        scale = torch.linalg.cholesky(torch.linalg.inv(precision))
        return FullFactors(mean, scale.expand(*mean.shape, k))

    def global_optimum(self, globals_, factors, X, weights):
        """One sweep: every (W_d, m_d) jointly, then v (Bishop 1999, eq. 21-26)."""
        n_features, k = X.shape[1], self.n_components
        q = self._moments(globals_, n_features)
        moments = (weights[:, None, None] * self._second_moment(factors)).sum(0)
        design = torch.cat([factors.mean, factors.mean.new_ones(len(X), 1)], -1)
        loc = torch.as_tensor(self.mean_loc).to(X).expand(n_features)
        cross = (weights.unsqueeze(-1) * (X - loc)).mT @ design
        scales = [self.loading_scale] * k + [self.mean_scale]
        prior = torch.stack([torch.as_tensor(s).to(X).expand(n_features) for s in scales], -1)
        precision = q.precision[:, None, None] * moments + torch.diag_embed(prior**-2)
        solution = torch.linalg.solve(precision, q.precision.unsqueeze(-1) * cross)
        variance = 1 / precision.diagonal(dim1=-2, dim2=-1)
        second = solution.unsqueeze(-1) * solution.unsqueeze(-2) + torch.diag_embed(variance)
        residual = weights @ (X - loc) ** 2 - 2 * (solution * cross).sum(-1)
        residual = (residual + (second * moments).sum((-2, -1))).clamp_min(0)
        count = weights.sum()
        if self.noise == "isotropic":
            residual, count = residual.sum(), count * n_features
        shape = count / 2 + self.noise_shape
        scale = residual / 2 + torch.as_tensor(self.noise_scale).to(X)
        # Normal q(log v) for the density v^-shape exp(-scale / v): variance 1 / shape, and
        # E[1/v] = shape / scale fixes the mean.
        log_mean = (scale / shape).log() + 0.5 / shape
        mean = [solution[:, :k].reshape(-1), solution[:, k] + loc, log_mean.reshape(-1)]
        squared = [variance[:, :k].reshape(-1), variance[:, k], (1 / shape).expand_as(mean[2])]
        return DiagonalFactors(torch.cat(mean), torch.cat(squared).sqrt())

    def compressed(self, X: Tensor, weights: Tensor):
        """Return 2 n_features rows with the same weighted first and second moments.

        The optimal factors are linear in x_n and every expectation is quadratic in x_n, so F-VI's
        problem in theta sees the data through these moments alone.
        """
        n_features = X.shape[1]
        if len(X) <= 2 * n_features:
            return X, weights
        total = weights.sum()
        mean = weights @ X / total
        sd = (weights @ (X - mean) ** 2 / total).sqrt()
        sd = torch.where(sd > 0, sd, torch.ones_like(sd))  # in sds, no column's digits are lost
        rows = (X - mean) / sd * (weights / total).sqrt().unsqueeze(-1)
        values, vectors = torch.linalg.eigh(rows.mT @ rows)
        steps = sd * vectors.mT * (values.clamp_min(0) * n_features).sqrt().unsqueeze(-1)
        return torch.cat([mean + steps, mean - steps]), (total / (2 * n_features)).expand(
            2 * n_features
        )

    def _second_moment(self, factors):
        """E[(z, 1)(z, 1)'], shape (n_rows, k + 1, k + 1)."""
        m = torch.nn.functional.pad(factors.mean, (0, 1), value=1.0)
        covariance = torch.nn.functional.pad(factors.covariance(), (0, 1, 0, 1))
        return m.unsqueeze(-1) * m.unsqueeze(-2) + covariance

    def _moments(self, globals_, n_features):
        return _Moments(globals_, n_features, self.n_components, self.noise)


class _Moments:
    """Moments of q(W, m, log v), tilted by 1/v: see `FactorAnalysis.expected_log_local`."""

    def __init__(self, globals_, n_features, k, noise):
        d = torch.arange(n_features, device=globals_.mean.device)
        loadings = d.unsqueeze(-1) * k + torch.arange(k, device=d.device)
        mean = n_features * k + d
        first = n_features * (k + 1)
        log_variance = first + (d if noise == "diagonal" else torch.zeros_like(d))
        index = torch.cat([loadings, mean.unsqueeze(-1), log_variance.unsqueeze(-1)], -1)
        block = globals_.block_covariance(index)
        centre = globals_.mean[index]
        tilted = centre[:, :-1] - block[:, :-1, -1]
        self.log_variance = centre[:, -1]
        self.precision = (0.5 * block[:, -1, -1] - self.log_variance).exp()
        self.loadings, self.mean = tilted[:, :k], tilted[:, k]
        self.covariance = block[:, :-1, :-1]
