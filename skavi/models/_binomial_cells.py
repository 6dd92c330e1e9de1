"""Cells that count successes out of a known number of trials."""

import torch
from torch.distributions import Binomial
from torch.nn import functional as F

from skavi.models._likelihoods import BernoulliCells


class BinomialCells(BernoulliCells):
    """x ~ Binomial(theta["trials"], sigmoid(eta)); trials are of the rows, or cells."""

    needs = "counts >= 0"

    def distribution(self, eta, theta):
        return Binomial(theta["trials"], logits=eta, validate_args=False)

    def kernel(self, x, eta, theta):
        return x * eta - theta["trials"] * F.softplus(eta)

    def constant(self, x, theta):
        n = theta["trials"]
        return torch.lgamma(n + 1) - torch.lgamma(x + 1) - torch.lgamma(n - x + 1)

    def invalid(self, x):
        return [(x < 0, "negative entries")]
