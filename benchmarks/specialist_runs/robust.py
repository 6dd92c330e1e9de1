"""Counts that vary more than Poisson ones, and numbers with outliers, beside what there is."""

import functools

import numpy as np
import sklearn.decomposition
import torch

from skavi.models import FactorAnalysis

from . import evaluation
from .contest import Contestant, Job
from .linear import LOG_LIKELIHOOD, ours, split


def overdispersed(n_components):
    """Negative binomial factors of pyPLNmodels' scRNA table: GLM-PCA (Townes et al. 2019)."""
    import pyPLNmodels

    train, test = split(np.asarray(pyPLNmodels.load_scrna()["endog"], float))
    kept = train.sum(0) > 0
    train, test = train[:, kept], test[:, kept]

    def specialist():
        from glmpca.glmpca import glmpca

        np.random.seed(0)  # noqa: NPY002 - glmpca's start is from the global generator
        return glmpca(train.T, n_components, fam="nb")

    def of_specialist(found):
        """Read its factors as draws of a normal, of mean 0, and turn them to unit covariance."""
        root = np.linalg.cholesky(np.cov(found["factors"].T).reshape(n_components, -1))
        centre = found["coefX"][:, 0] + np.log(test.mean(1, keepdims=True))
        dispersion = 1 / found["glmpca_family"].nb_theta
        return evaluation.overdispersed(test, found["loadings"] @ root, centre, dispersion)

    def of_ours(vi):
        mean = vi.global_posterior_.mean
        offset = np.log(test.sum(1, keepdims=True) / np.exp(vi.model_.mean_loc).sum())
        centre = mean["mean"] + offset
        return evaluation.overdispersed(test, mean["loadings"], centre, mean["dispersion"])

    model = FactorAnalysis(n_components, likelihood="negative_binomial")
    rival = Contestant("GLM-PCA", specialist, of_specialist)
    shape = f"{train.shape[0]} x {train.shape[1]}, {n_components} components"
    name = f"overdispersed counts: scrna, {shape}"
    return Job(name, LOG_LIKELIHOOD, True, [*ours(model, train, test, of_ours), rival])


def outliers(n_components=2, n_rows=1000, n_columns=20):
    """Student t cells of two factors; no package offers their kind, so normal ones stand beside.

    Scikit-learn's FactorAnalysis has no heavy tails: what they are worth is in the numbers.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, n_components)) @ rng.normal(size=(n_components, n_columns))
    train, test = split(X + 0.5 * rng.standard_t(3, size=X.shape))

    def specialist():
        return sklearn.decomposition.FactorAnalysis(n_components).fit(train)

    def of_specialist(fa):
        return evaluation.numbers(test, fa.components_.T, fa.mean_, fa.noise_variance_)

    def of_ours(vi):
        mean, rows = vi.global_posterior_.mean, vi.posterior(test)
        theta = {name: torch.as_tensor(value) for name, value in mean.items()}
        log_joint = functools.partial(vi.model_.log_terms, theta, X=torch.as_tensor(test))
        return evaluation.own_factors(log_joint, rows.mean, rows.sd)

    model = FactorAnalysis(n_components, "diagonal", likelihood="student_t")
    rival = Contestant(
        "sklearn FactorAnalysis", specialist, of_specialist, lambda fa: fa.transform(test)
    )
    name = f"outliers: simulated, {train.shape[0]} x {n_columns}, {n_components} factors"
    return Job(name, LOG_LIKELIHOOD, True, [*ours(model, train, test, of_ours), rival])
