"""Emissions of states: a sweep never lowers the ELBO, and ends where its gradient vanishes."""

import pytest
import torch

from skavi._data.rows import Rows
from skavi._data.validated_tables import roles_in
from skavi._fit.model_checks import goes_through_vmap
from skavi.families import DiagonalNormal
from skavi.models import HiddenMarkovModel, MixtureModel
from skavi.models._emissions_by_name import COVARIANCES, EMISSIONS
from skavi.objective import bind

KINDS = [(each, "diagonal") for each in EMISSIONS]
KINDS += [("normal", each) for each in COVARIANCES if each != "diagonal"]
MIXED = {"normal": [0], "ordinal": [1], "categorical": [2], "bernoulli": [3], "binomial": [4]}


@pytest.mark.parametrize(("likelihood", "covariance"), KINDS)
def test_sweeps_climb_to_where_the_elbo_is_level(likelihood, covariance):
    generator = torch.Generator().manual_seed(0)
    kinds = 7.0 * (torch.arange(40) % 2)[:, None]  # apart, so that sweeps end
    X = (kinds + 4 * torch.rand(40, 3, generator=generator, dtype=torch.float64)).round()
    X = (X > 5.5).double() if likelihood == "bernoulli" else X
    X[0, 1] = X[1, 0] = X[3] = torch.nan
    model = MixtureModel(2, likelihood, covariance, concentration=0.5)
    climbs(model, X, generator)


def test_sweeps_climb_on_mixed_columns():
    generator = torch.Generator().manual_seed(0)
    coins = torch.rand(40, 5, generator=generator, dtype=torch.float64).round()
    codes = (torch.arange(40) % 2)[:, None] + coins
    X = torch.cat([codes, codes[:, 1:2] + 2], 1)
    X[:, 3] = (X[:, 3] > 0.5).double()
    X[0, 1] = X[1, 0] = X[2, 4] = X[3, :5] = torch.nan
    X[:, 5] = X[:, 5].nan_to_num(3)
    model = MixtureModel(2, MIXED, trials=[5])
    model.columns_ = roles_in(X.numpy(), {"trials": (5,)}, "", True, (), MIXED)
    climbs(model, X, generator)
    objective = bind(model.adapted(X, torch.ones(40).double()), None, DiagonalNormal(), X)
    raw = torch.zeros(2 * objective.space.size, dtype=torch.float64)
    assert goes_through_vmap(objective, raw, Rows(X, torch.ones(40).double()))


@pytest.mark.parametrize("kind", [MixtureModel, HiddenMarkovModel])
@pytest.mark.parametrize(("likelihood", "covariance"), KINDS)
def test_log_joints_go_through_vmap(likelihood, covariance, kind):
    """That is taken for granted, before every fit."""
    X = torch.tensor([[0.0, 1.0], [1.0, torch.nan], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    model = kind(2, likelihood, covariance=covariance).adapted(X, torch.ones(4).double())
    objective = bind(model, None, DiagonalNormal(), X)
    raw = torch.zeros(2 * objective.space.size, dtype=torch.float64)
    assert model.goes_through_vmap
    assert goes_through_vmap(objective, raw, Rows(X, torch.ones(4).double()))


@pytest.mark.parametrize(("likelihood", "covariance"), KINDS)
def test_a_row_without_cells_changes_nothing_for_others(likelihood, covariance):
    """Complete tables are computed by fewer steps than those with holes; to rounding."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(9, 3, generator=generator, dtype=torch.float64).mul(5).round()
    X = (X > 2.5).double() if likelihood == "bernoulli" else X
    model = MixtureModel(2, likelihood, covariance).adapted(X, torch.ones(9).double())
    emissions, n = model.emissions, bind(model, None, DiagonalNormal(), X).space.size - 1
    mean, sd = torch.randn(2, n, generator=generator, dtype=torch.float64)
    sd, more = 0.1 + 0.1 * sd.abs(), torch.cat([X, torch.full_like(X[:1], torch.nan)])
    found = emissions.expected_log_likelihoods(mean, sd, X)
    torch.testing.assert_close(emissions.expected_log_likelihoods(mean, sd, more)[:-1], found)
    shares = torch.rand(10, 2, generator=generator, dtype=torch.float64)
    best = emissions.optimum(mean, sd, shares[:-1], X)
    torch.testing.assert_close(emissions.optimum(mean, sd, shares, more), best)


def climbs(model, X, generator):
    """Sweep from a random q(theta), with the rows weighted."""
    weights = torch.rand(40, generator=generator, dtype=torch.float64)
    model = model.adapted(X, weights)
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
