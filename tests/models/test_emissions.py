"""Emissions of states: a sweep never lowers the ELBO, and ends where its gradient vanishes."""

import pytest
import torch

from skavi.families import DiagonalNormal
from skavi.models import MixtureModel
from skavi.models._emissions_by_name import COVARIANCES, EMISSIONS
from skavi.objective import bind

KINDS = [(each, "diagonal") for each in EMISSIONS]
KINDS += [("normal", each) for each in COVARIANCES if each != "diagonal"]


@pytest.mark.parametrize(("likelihood", "covariance"), KINDS)
def test_sweeps_climb_to_where_the_elbo_is_level(likelihood, covariance):
    generator = torch.Generator().manual_seed(0)
    kinds = 7.0 * (torch.arange(40) % 2)[:, None]  # apart, so that sweeps end
    X = (kinds + 4 * torch.rand(40, 3, generator=generator, dtype=torch.float64)).round()
    X = (X > 5.5).double() if likelihood == "bernoulli" else X
    X[0, 1] = X[1, 0] = X[3] = torch.nan
    weights = torch.rand(40, generator=generator, dtype=torch.float64)
    model = MixtureModel(2, likelihood, covariance, concentration=0.5).adapted(X, weights)
    objective = bind(model, None, DiagonalNormal(), X)
    raw = objective.global_family.raw(
        objective.global_factor(torch.zeros(2 * objective.space.size))
    )
    raw = raw.double() + 0.1 * torch.randn(raw.shape, generator=generator, dtype=torch.float64)

    def elbo(raw):
        terms = objective.row_terms(X[:, :0], raw, X, None)
        return objective.summed(terms, raw, weights)

    values = [elbo(raw)]
    for _ in range(60):
        _, factors, _ = objective.optimum(raw, X, None)
        swept = model.global_optimum(objective.global_factor(raw), factors, X, weights)
        raw = objective.global_family.raw(swept)
        values.append(elbo(raw))
    rises = torch.diff(torch.stack(values))
    assert rises.min() > -1e-9
    assert rises[-1] < 1e-8
    raw.requires_grad_(True)
    (slope,) = torch.autograd.grad(elbo(raw), raw)
    assert slope.abs().max() < 1e-5
