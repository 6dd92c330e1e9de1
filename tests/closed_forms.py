"""Exact answers for the models that have them: the tests' independent source of truth.

Nothing here imports skavi; numpy and scipy in float64 only (torch only redraws the paper's data).
Every ELBO and evidence is in nats, summed over all rows, with all normalising constants kept. A
flat prior has density 1. A series x may be (n_samples,) or (n_samples, 1).

One fact carries most of the file. Let log p(u, x) = l(u) be quadratic in the latents u with
precision P (minus its Hessian), and q(u) = prod_i N(u_i; m_i, s_i^2), the entropy of u_i counted
w_i times. Then

    ELBO = l(m) - 1/2 sum_i P_ii s_i^2 + sum_i w_i (log s_i + 1/2 log(2 pi e)),

so means and sds separate. The means solve a least-squares problem, whatever linear form they are
held to; a free sd is s_i^2 = w_i / P_ii, and one shared by a group G is s^2 = sum_G w_i / sum_G
P_ii. Either way 1/2 sum P_ii s_i^2 = 1/2 sum w_i, hence

    ELBO* = l(m) + sum_i w_i (log s_i + 1/2 log 2 pi).                                          (*)
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, root
from scipy.special import logsumexp

LOG_2PI = np.log(2.0 * np.pi)


@dataclass(frozen=True)
class Optimum:
    """Hold a mean-field optimum: all rows' ELBO, q(z_n) and q(theta), unconstrained scale.

    z arrays are (n_samples,) or (n_samples, n_latents). theta's are None in models without free
    globals, and elbo_rows, each row's ELBO (n_samples,), is None in all others.
    """

    elbo: float
    z_mean: np.ndarray
    z_sd: np.ndarray
    theta_mean: float | np.ndarray | None = None
    theta_sd: float | np.ndarray | None = None
    elbo_rows: np.ndarray | None = None


@dataclass(frozen=True)
class ExactPosterior:
    """Hold z's normal posterior: mean (n, k); cov (k, k), or (n, k, k) where rows differ."""

    mean: np.ndarray
    cov: np.ndarray


@dataclass(frozen=True)
class Smoothed:
    """Hold a smoother's marginal means and variances, (n_samples,), and the log evidence, nats."""

    means: np.ndarray
    variances: np.ndarray
    log_evidence: float


def _series(x):
    return np.asarray(x, dtype=np.float64).ravel()


def _normal_logpdf(residual, sd):
    return -0.5 * (residual / sd) ** 2 - np.log(sd) - 0.5 * LOG_2PI


def _windows(x, context, outside):
    """Return the design [1, x_{n-before}, ..., x_{n+after}]; absent rows read as `outside`."""
    before, after = context
    padded = np.concatenate([np.full(before, outside), x, np.full(after, outside)])
    shifted = [padded[i : i + len(x)] for i in range(before + after + 1)]
    return np.column_stack([np.ones(len(x)), *shifted])


# The linear model and the saw time series: one model at two settings


@dataclass(frozen=True)
class _FlatMean:
    """Solve p(theta) = 1, z_n ~ N(p_n, 1), x_n ~ N(a theta + b z_n, s^2), row n weighted by w_n.

    Given theta, z_n's best mean is p_n + b (x_n - b p_n - a theta) / (s^2 + b^2), for any w_n > 0.
    It leaves -w_n (x_n - b p_n - a theta)^2 / (2 (s^2 + b^2)), so theta = weighted mean of (x_n - b
    p_n) / a. Precisions: w_n (1 + b^2 / s^2) for z_n, so its sd is s / sqrt(s^2 + b^2), w_n having
    cancelled: equal in all rows, so sharing it costs nothing; a^2 sum w / s^2 for theta.
    """

    x: np.ndarray
    w: np.ndarray
    prior: np.ndarray
    slope: float
    loading: float
    sd: float

    def factorized(self):
        residual = self.x - self.loading * self.prior
        theta = self.w @ residual / (self.slope * self.w.sum())
        gain = self.loading / (self.sd**2 + self.loading**2)
        return self._at(theta, self.prior + gain * (residual - self.slope * theta))

    def restricted(self, design):
        """Return the optimum with E z = design @ coefficients: least squares for theta and them."""
        slope = np.full((len(self.x), 1), self.slope)
        data_rows = np.hstack([slope, self.loading * design]) / self.sd
        rows = np.vstack([np.hstack([0 * slope, design]), data_rows])
        target = np.r_[self.prior, self.x / self.sd]
        root_w = np.sqrt(np.r_[self.w, self.w])
        best = np.linalg.lstsq(rows * root_w[:, None], target * root_w, rcond=None)[0]
        return self._at(best[0], design @ best[1:])

    def constant(self):
        return self.restricted(np.ones((len(self.x), 1)))

    def _at(self, theta, z_mean):
        z_sd = np.full(len(self.x), self.sd / np.hypot(self.sd, self.loading))
        theta_sd = self.sd / (abs(self.slope) * np.sqrt(self.w.sum()))
        rows = _normal_logpdf(self.x - self.slope * theta - self.loading * z_mean, self.sd)
        rows = rows + _normal_logpdf(z_mean - self.prior, 1.0) + np.log(z_sd) + 0.5 * LOG_2PI
        elbo = self.w @ rows + np.log(theta_sd) + 0.5 * LOG_2PI
        return Optimum(float(elbo), z_mean, z_sd, float(theta), float(theta_sd))

    def log_evidence(self):
        """Return log of the integral over theta of prod N(x_n - b p_n; a theta, s^2 + b^2)^w_n.

        With r_n = x_n - b p_n and rbar its weighted mean, sum w (r - a theta)^2 =
        sum w (r - rbar)^2 + sum w (rbar - a theta)^2, the last a normal integral over theta.
        """
        residual, total = self.x - self.loading * self.prior, self.w.sum()
        variance = self.sd**2 + self.loading**2
        spread = self.w @ (residual - self.w @ residual / total) ** 2
        kernel = -0.5 * total * np.log(2 * np.pi * variance) - 0.5 * spread / variance
        return float(kernel + 0.5 * np.log(2 * np.pi * variance / (self.slope**2 * total)))


def _linear(x, tau, sigma, w):
    x = _series(x)
    w = np.ones(len(x)) if w is None else _series(w)
    return _FlatMean(x, w, np.zeros(len(x)), slope=1.0, loading=tau, sd=sigma)


def _saw(x, a, initial):
    x = _series(x)
    return _FlatMean(x, np.ones(len(x)), np.r_[initial, x[:-1]], slope=a, loading=a, sd=1.0)


def linear_factorized(x, tau, sigma, w=None):
    """Return the mean-field optimum of the linear model.

    p(theta) = 1, z_n ~ N(0, 1), x_n ~ N(theta + tau z_n, sigma^2).

    Parameters
    ----------
    x : array-like, (n_samples,)
    tau, sigma : float
    w : array-like, (n_samples,), default all 1
        Row weights >= 0: w_n multiplies E log p(x_n, z_n | theta) and the entropy of q(z_n).

    Notes
    -----
    `_FlatMean` with p = 0, a = 1: theta = weighted mean of x, E z_n = tau (x_n - theta) / (sigma^2
    + tau^2), var z_n = sigma^2 / (sigma^2 + tau^2), var theta = sigma^2 / sum w. The ELBO is (*).
    """
    return _linear(x, tau, sigma, w).factorized()


def linear_constant(x, tau, sigma, w=None):
    """Return the optimum when every q(z_n) is the same normal (arguments of `linear_factorized`).

    A shared mean c enters sum w_n (x_n - theta - tau c)^2 / sigma^2 and sum w_n c^2. theta is flat
    and takes up tau c at no cost: c = 0 and theta is the weighted mean. The sds of
    `linear_factorized` are shared already.
    """
    return _linear(x, tau, sigma, w).constant()


def linear_evidence(x, tau, sigma, w=None):
    """Return the log evidence, nats, theta integrated under density 1.

    x_n | theta ~ N(theta, sigma^2 + tau^2), independent. With weights: log of the integral over
    theta of prod p(x_n | theta)^w_n, which by Jensen's inequality bounds the weighted ELBO.
    """
    return _linear(x, tau, sigma, w).log_evidence()


def saw_factorized(x, a=0.75, initial=0.0):
    """Return the mean-field optimum of the saw time series.

    p(theta) = 1, z_n ~ N(x_{n-1}, 1), x_n ~ N(a (theta + z_n), 1), x_0 = initial.

    Parameters
    ----------
    x : array-like, (n_samples,)
        x_1, ..., x_N in time order, without x_0.
    a, initial : float

    Notes
    -----
    `_FlatMean` with p_n = x_{n-1}: E z_n = (x_{n-1} + a (x_n - a theta)) / (1 + a^2), affine in
    (x_{n-1}, x_n), which is why `saw_linear` with context (1, 0) has no gap; theta = mean(x_n - a
    x_{n-1}) / a; sds 1 / sqrt(1 + a^2) and 1 / (|a| sqrt(N)).
    """
    return _saw(x, a, initial).factorized()


def saw_linear(x, a=0.75, initial=0.0, context=(1, 0)):
    """Return the optimum when E z_n is affine in a window of x and log sd one constant.

    The window is the `context` = (rows before, rows after); absent rows read as `initial`. Least
    squares, `_FlatMean.restricted`. P_nn = 1 + a^2 in every row: the best free sd is a constant.
    """
    model = _saw(x, a, initial)
    return model.restricted(_windows(model.x, context, initial))


def saw_constant(x, a=0.75, initial=0.0):
    """Return the optimum when every q(z_n) is the same normal: `saw_linear`'s intercept alone."""
    return _saw(x, a, initial).constant()


def saw_evidence(x, a=0.75, initial=0.0):
    """Return the log evidence, nats: x_n - a x_{n-1} | theta ~ N(a theta, 1 + a^2)."""
    return _saw(x, a, initial).log_evidence()


def paper_saw_data():
    """Return x_1, ..., x_1000 of Margossian & Blei's (2024) saw, float64, without x_0 = 0."""
    import torch

    generator = torch.Generator().manual_seed(2012)
    x = torch.zeros(1001)
    for n in range(1000):
        torch.randn(1, generator=generator)  # z_n, drawn and then not used: x comes from x_n
        x[n + 1] = torch.randn(1, generator=generator) + 0.75 * (3.4159 + x[n])
    return x[1:].numpy().astype(np.float64)


def paper_nonlinear_data():
    """Return (x, z, theta) of the paper's nonlinear experiment: (10000,) float64 twice, a float."""
    import torch

    generator = torch.Generator().manual_seed(1789)
    theta = torch.randn(1, generator=generator)
    z = 5 * torch.randn(10_000, generator=generator)
    eps = torch.randn(10_000, 1, generator=generator).ravel()
    x = theta + z * torch.sin(z) + z + eps * torch.exp(torch.cos(z))
    return x.numpy().astype(np.float64), z.numpy().astype(np.float64), float(theta)


def published(elbo, n_samples, likelihood_sd=1.0):
    """Return the paper's loss for an ELBO of its saw, or linear (likelihood_sd=sigma), model.

    The log joint loses log(2 pi) / 2 for z_n and log(2 pi) / 2 + log likelihood_sd for x_n, each
    row; -log q loses log(2 pi) / 2 for each of the n + 1 factors. The nonlinear experiment's loss
    is no such shift: its density leaves out cos(z_n), whose expectation moves with q.
    """
    dropped_from_joint = n_samples * (LOG_2PI + np.log(likelihood_sd))
    return -elbo - dropped_from_joint + 0.5 * (n_samples + 1) * LOG_2PI


# Factor analysis: z_n ~ N(0, I), x_n ~ N(W z_n + mu, diag(psi)); NaN cells drop out


def _ppca_rows(X, W, mu, psi):
    """Return each row's posterior mean (n, k), precision (n, k, k) and log evidence (n,).

    P_n = I + sum_d w_d w_d' / psi_d and m_n = P_n^-1 sum_d w_d (x_nd - mu_d) / psi_d over the cells
    seen. Bayes' rule at z = m_n: log p(x_n) = log p(x_n | m_n) + log p(m_n) - log p(m_n | x_n).
    """
    X, W, mu, psi = (np.asarray(v, dtype=np.float64) for v in (X, W, mu, psi))
    psi = np.broadcast_to(psi, mu.shape)
    seen = ~np.isnan(X)
    centred = np.where(seen, X - mu, 0.0)
    precision = np.eye(W.shape[1]) + np.einsum("nd,d,di,dj->nij", seen, 1 / psi, W, W)
    mean = np.linalg.solve(precision, ((centred / psi) @ W)[:, :, None])[:, :, 0]
    log_likelihood = np.sum(seen * _normal_logpdf(centred - mean @ W.T, np.sqrt(psi)), axis=1)
    log_volume = 0.5 * np.linalg.slogdet(precision)[1]
    return mean, precision, log_likelihood - 0.5 * np.sum(mean**2, axis=1) - log_volume


def ppca_posterior(X, W, mu, psi):
    """Return the exact posterior of z_n for complete rows, cov (n_latents, n_latents).

    Parameters
    ----------
    X : array-like, (n_samples, n_features)
    W : array-like, (n_features, n_latents)
    mu : array-like, (n_features,)
    psi : array-like, (n_features,), or float
        Noise variances, not sds.

    Notes
    -----
    Tipping & Bishop (1999): cov = (I + W' psi^-1 W)^-1, mean = cov W' psi^-1 (x_n - mu).
    """
    if np.isnan(X).any():
        raise ValueError("X has NaN cells: rows no longer share cov, use ppca_posterior_missing.")
    mean, precision, _ = _ppca_rows(X, W, mu, psi)
    return ExactPosterior(mean, np.linalg.inv(precision[0]))


def ppca_posterior_missing(X, W, mu, psi):
    """Return the exact posterior of z_n given each row's cells that are not NaN, cov (n, k, k).

    As `ppca_posterior` with sums over the cells seen; a row with none keeps the prior.
    """
    mean, precision, _ = _ppca_rows(X, W, mu, psi)
    return ExactPosterior(mean, np.linalg.inv(precision))


def ppca_log_evidence(X, W, mu, psi):
    """Return log p(x_n | W, mu, psi) of each row, nats; NaN cells are marginalised out."""
    return _ppca_rows(X, W, mu, psi)[2]


def ppca_factorized(X, W, mu, psi):
    """Return the diagonal-normal optimum for q(z_n), with `elbo_rows`; globals fixed.

    Mean: the exact mean; sd: 1 / sqrt(P_ii) (Bishop 2006, eq. 10.12-10.15). The bound falls short
    of the evidence by KL(q || posterior) = (sum_i log P_ii - log det P) / 2, as tr(P S) = k.
    """
    mean, precision, log_evidence = _ppca_rows(X, W, mu, psi)
    diagonal = np.einsum("nii->ni", precision)
    rows = log_evidence - 0.5 * (np.log(diagonal).sum(axis=1) - np.linalg.slogdet(precision)[1])
    return Optimum(float(rows.sum()), mean, 1 / np.sqrt(diagonal), elbo_rows=rows)


def factor_analysis_elbo_rows(
    X, W_mean, W_sd, mu_mean, mu_sd, log_sigma_mean, log_sigma_sd, z_mean, z_cov
):
    """Return E_q log p(x_n, z_n | W, mu, sigma) plus the entropy of q(z_n), nats, (n_samples,).

    Parameters
    ----------
    X : array-like, (n_samples, n_features)
    W_mean, W_sd : array-like, (n_features, n_latents)
    mu_mean, mu_sd : array-like, (n_features,)
    log_sigma_mean, log_sigma_sd : array-like, (n_features,), or float when one sigma is shared
        q(log sigma_d) = N(mean, sd^2), sigma the noise sd.
    z_mean : array-like, (n_samples, n_latents)
    z_cov : array-like, (n_latents, n_latents) or (n_samples, n_latents, n_latents)

    Notes
    -----
    With independent factors, C = z_cov and bars for means, E (x_d - W_d z - mu_d)^2 = (x_d - Wbar_d
    zbar - mubar_d)^2 + sd(mu_d)^2 + Wbar_d C Wbar_d' + sum_j sd(W_dj)^2 (zbar_j^2 + C_jj). It is
    multiplied by E sigma_d^-2 = E exp(-2 log sigma_d) = exp(-2 m_d + 2 s_d^2). Sharing sigma
    changes nothing, since each cell's expectation is taken alone.
    """
    X, W_mean, W_sd, mu_mean, mu_sd, z_mean, cov, m, s = (
        np.asarray(v, dtype=np.float64)
        for v in (X, W_mean, W_sd, mu_mean, mu_sd, z_mean, z_cov, log_sigma_mean, log_sigma_sd)
    )
    k = z_mean.shape[1]
    cov = np.broadcast_to(cov, (len(X), k, k))
    z_square = z_mean**2 + np.einsum("nii->ni", cov)
    square = (X - mu_mean - z_mean @ W_mean.T) ** 2 + mu_sd**2 + z_square @ (W_sd**2).T
    square = square + np.einsum("di,nij,dj->nd", W_mean, cov, W_mean)
    cells = -0.5 * LOG_2PI - m - 0.5 * np.exp(-2 * m + 2 * s**2) * square
    entropy_and_prior = 0.5 * (k + np.linalg.slogdet(cov)[1] - np.sum(z_square, axis=1))
    return np.nansum(cells, axis=1) + entropy_and_prior


# Random effects: mu ~ N(0, mu_scale^2), effect_n ~ N(mu, tau^2), estimate_n ~ N(effect_n, se_n^2)


def _half_cauchy(t, scale):
    """Return the log density of t = log tau, Jacobian included, and its derivative."""
    excess = 2 * (t - np.log(scale))
    return np.log(2 / (np.pi * scale)) - np.logaddexp(0, excess) + t, -np.tanh(0.5 * excess)


def _half_normal(t, scale):
    square = np.exp(2 * (t - np.log(scale)))
    return 0.5 * np.log(2 / np.pi) - np.log(scale) - 0.5 * square + t, 1 - square


_TAU_PRIORS = {"half_cauchy": _half_cauchy, "half_normal": _half_normal}


def random_effects_evidence(estimate, se, mu_scale=5.0, tau_scale=5.0, tau_prior="half_cauchy"):
    """Return the log evidence of the random-effects model, nats, for a prior of `_TAU_PRIORS`.

    Given tau, estimates are N(0, D + mu_scale^2 1 1'), D = diag(se^2 + tau^2): Sherman-Morrison.
    log tau is integrated by the trapezoid rule, step h = 0.01, to 40 units beyond every scale in
    the problem. The integrand is analytic and bounded for |Im log tau| < pi / 4 and dies at least
    as fast as exp(-|log tau|) at both ends, so the discretisation error, exp(-pi^2 / (2 h)), and
    the tails, exp(-40), are below rounding.
    """
    y, se = _series(estimate), _series(se)
    scales = np.log(np.concatenate([se, [tau_scale, mu_scale, np.ptp(y) + se.min()]]))
    t = np.arange(scales.min() - 40, scales.max() + 40, 0.01)
    variance = se**2 + np.exp(2 * t)[:, None]
    inflation = 1 + mu_scale**2 * np.sum(1 / variance, axis=1)
    pulled = mu_scale**2 * np.sum(y / variance, axis=1) ** 2 / inflation
    cells = np.sum(LOG_2PI + np.log(variance) + y**2 / variance, axis=1)
    log_likelihood = -0.5 * (cells + np.log(inflation) - pulled)
    log_prior = _TAU_PRIORS[tau_prior](t, tau_scale)[0]
    return float(logsumexp(log_likelihood + log_prior) + np.log(0.01))


def random_effects_meanfield_noncentred(
    estimate, se, mu_scale=5.0, tau_scale=5.0, tau_prior="half_cauchy"
):
    """Return the mean-field optimum over (mu, log tau, z_1, ..., z_N), effect_n = mu + tau z_n.

    ``theta_mean`` and ``theta_sd`` are arrays (mu, log tau).

    For q(log tau) = N(l, s^2): T1 = E tau = exp(l + s^2 / 2), T2 = E tau^2 = exp(2 l + 2 s^2).
    Given (l, s), with c_n, v_n^2 the mean and variance of z_n, m = E mu and r = estimate - m,

        E (estimate - mu - tau z)^2 = r^2 + var(mu) - 2 r T1 c + T2 (c^2 + v^2),
        v^2 = 1 / (1 + T2 / se^2),  c = v^2 T1 r / se^2,  var(mu)^-1 = mu_scale^-2 + sum se^-2,
        m = sum(o estimate) / (sum o + 1 / mu_scale^2),  o = (1 - T1^2 v^2 / se^2) / se^2.

    Left are l and log s; E log p(log tau) is an 80-node Gauss-Hermite sum. By the envelope theorem
    their gradient is the partial one. L-BFGS-B from several l, the best polished to a root of it.
    """
    y, precision = _series(estimate), 1 / _series(se) ** 2
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    mu_variance = 1 / (1 / mu_scale**2 + precision.sum())

    def profile(parameters):
        location, sd = parameters[0], np.exp(parameters[1])
        first, second = np.exp(location + sd**2 / 2), np.exp(2 * location + 2 * sd**2)
        z_variance = 1 / (1 + second * precision)
        pull = precision * (1 - first**2 * z_variance * precision)
        mu = pull @ y / (pull.sum() + 1 / mu_scale**2)
        z_mean = z_variance * first * precision * (y - mu)
        z_square = z_mean**2 + z_variance
        square = (y - mu) ** 2 + mu_variance - 2 * (y - mu) * first * z_mean + second * z_square
        log_prior, slope = _TAU_PRIORS[tau_prior](location + sd * nodes, tau_scale)
        elbo = np.sum(np.log(precision) - LOG_2PI - precision * square)  # the likelihood, twice
        elbo += np.sum(np.log(z_variance) + 1 - z_square)  # -2 KL(q || prior), z then mu
        elbo += np.log(mu_variance / mu_scale**2) + 1 - (mu**2 + mu_variance) / mu_scale**2
        elbo = 0.5 * (elbo + LOG_2PI + 1) + np.log(sd) + weights @ log_prior
        by_first = first * np.sum(precision * (y - mu) * z_mean)
        by_second = -second * np.sum(precision * z_square)
        by_location = by_first + by_second + weights @ slope
        by_log_sd = sd**2 * (by_first + 2 * by_second) + sd * weights @ (slope * nodes) + 1
        theta = np.array([mu, location]), np.array([np.sqrt(mu_variance), sd])
        optimum = Optimum(float(elbo), z_mean, np.sqrt(z_variance), *theta)
        return optimum, np.array([by_location, by_log_sd])

    def loss(parameters):
        optimum, gradient = profile(parameters)
        return -optimum.elbo, -gradient

    scales = np.log([np.sqrt(1 / precision.max()), np.ptp(y) + np.sqrt(mu_variance), tau_scale])
    box = [(scales.min() - 6, scales.max() + 6), (-8.0, 1.5)]
    starts = [np.array([at, -0.5]) for at in np.linspace(scales.min() - 1, scales.max(), 5)]
    fits = [minimize(loss, start, jac=True, method="L-BFGS-B", bounds=box) for start in starts]
    best = min(fits, key=lambda fit: fit.fun)
    optimum, gradient = profile(root(lambda at: profile(at)[1], best.x, tol=1e-13).x)
    if not (np.abs(gradient).max() < 1e-8 and optimum.elbo > -best.fun - 1e-8):
        raise RuntimeError(f"no mean-field optimum found: gradient {gradient} at {optimum}")
    return optimum


# Local level: z_1 ~ N(m0, s0^2), z_n ~ N(z_{n-1}, q^2), x_n ~ N(z_n, r^2)


def kalman_smoother(x, m0, s0, q, r):
    """Return the exact marginals of z_n given the whole series, and the log evidence.

    Parameters
    ----------
    x : array-like, (n_samples,)
    m0, s0, q, r : float
        Mean and sd of z_1, sd of a step, sd of an observation.

    Notes
    -----
    Kalman filter, evidence from the one-step prediction errors N(0, variance + r^2), then the
    Rauch-Tung-Striebel backward pass (Durbin & Koopman 2012, ch. 2).
    """
    x = _series(x)
    means, variances = np.empty(len(x)), np.empty(len(x))
    mean, variance, log_evidence = m0, s0**2, 0.0
    for n, value in enumerate(x):
        log_evidence += _normal_logpdf(value - mean, np.sqrt(variance + r**2))
        gain = variance / (variance + r**2)
        means[n], variances[n] = mean + gain * (value - mean), gain * r**2
        mean, variance = means[n], variances[n] + q**2
    for n in range(len(x) - 2, -1, -1):
        gain = variances[n] / (variances[n] + q**2)
        means[n] += gain * (means[n + 1] - means[n])
        variances[n] += gain**2 * (variances[n + 1] - variances[n] - q**2)
    return Smoothed(means, variances, float(log_evidence))


def _local_level_optimum(x, m0, s0, q, r, z_mean, shared_sd):
    # P_nn: the observation, the start or a step before, and a step after except at the end
    step = np.full(len(x) - 1, 1 / q**2)
    precision = 1 / r**2 + np.r_[1 / s0**2, step] + np.r_[step, 0.0]
    z_sd = np.full(len(x), (precision.mean() if shared_sd else precision) ** -0.5)
    steps = _normal_logpdf(z_mean[0] - m0, s0) + np.sum(_normal_logpdf(np.diff(z_mean), q))
    log_joint = steps + np.sum(_normal_logpdf(x - z_mean, r))
    return Optimum(float(log_joint + np.sum(np.log(z_sd) + 0.5 * LOG_2PI)), z_mean, z_sd)


def local_level_factorized(x, m0, s0, q, r):
    """Return the mean-field optimum of the local level model; arguments as for `kalman_smoother`.

    (*) with free means: the maximiser of l is the posterior mean, here the smoother's. sd_n = 1 /
    sqrt(P_nn).
    """
    x = _series(x)
    z_mean = kalman_smoother(x, m0, s0, q, r).means
    return _local_level_optimum(x, m0, s0, q, r, z_mean, shared_sd=False)


def local_level_windowed_linear(x, m0, s0, q, r, context=(0, 0)):
    """Return the optimum when E z_n is affine in a window of x and the sd is shared.

    The window is the `context` = (rows before, rows after); absent rows read as 0. With z = F b the
    means minimise ((z_1 - m0) / s0)^2 + |diff(z) / q|^2 + |(x - z) / r|^2, least squares in b. The
    shared sd^2 is N / sum_n P_nn by (*); P_nn differs at the two ends, so sharing costs a little.
    """
    x = _series(x)
    design = _windows(x, context, 0.0)
    rows = np.vstack([design[:1] / s0, np.diff(design, axis=0) / q, design / r])
    target = np.r_[m0 / s0, np.zeros(len(x) - 1), x / r]
    z_mean = design @ np.linalg.lstsq(rows, target, rcond=None)[0]
    return _local_level_optimum(x, m0, s0, q, r, z_mean, shared_sd=True)


def importance_weighted_log_evidence(log_joint, log_q, draws):
    """Return log mean exp(log_joint(draws) - log_q(draws)), nats, for draws (n_draws, ...) from q.

    Both callables map draws to (n_draws,) log densities. The mean weight is unbiased for the
    evidence, so its log is a lower bound in expectation, at least the ELBO and rising with n_draws
    (Burda et al. 2016).
    """
    log_weights = np.asarray(log_joint(draws)) - np.asarray(log_q(draws))
    return float(logsumexp(log_weights) - np.log(len(log_weights)))
