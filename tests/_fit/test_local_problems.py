"""Rows that are solved after the function has spoken, where it misses."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import skavi
from skavi import AmortizedVI, amortization_gap
from skavi._estimators.fitted_estimator import function_on
from skavi._fit.local_problems import estimated_misses
from skavi.inference_functions import Constant, Polynomial
from skavi.models import (
    FactorAnalysis,
    LinearModel,
    LocalLevel,
    MixtureModel,
    NonlinearModel,
    TopicModel,
)

X = np.random.default_rng(0).normal(2.0, 2.0, size=(30, 1))


def test_the_estimate_is_exact_where_the_elbo_is_quadratic():
    """LinearModel: the ELBO is quadratic in the means, and a constant function has the best sd."""
    vi = AmortizedVI(LinearModel(), Constant()).fit(X)
    here = function_on(vi, X)
    misses = estimated_misses(here.problem, here.raw, here.raw_globals)
    np.testing.assert_allclose(misses, amortization_gap(vi, X).per_row, rtol=1e-3, atol=1e-8)


def test_rows_that_miss_by_more_are_solved_and_no_others():
    plain = AmortizedVI(LinearModel(), Constant()).fit(X)
    gaps = amortization_gap(plain, X).per_row
    nats = float(np.median(gaps))
    vi = AmortizedVI(LinearModel(), Constant(), refine=nats).fit(X)
    assert vi.elbo_ == plain.elbo_  # the fit is the function's
    before, after = plain.posterior(X).mean, vi.posterior(X).mean
    moved = np.abs(before - after)[:, 0] > 1e-12
    np.testing.assert_array_equal(moved, gaps > nats)
    np.testing.assert_allclose(
        vi.score_samples(X)[moved], (plain.score_samples(X) + gaps)[moved], atol=1e-6
    )
    np.testing.assert_allclose(amortization_gap(vi, X).per_row, gaps, atol=1e-9)


@pytest.mark.parametrize("model", [FactorAnalysis(2, likelihood="poisson"), MixtureModel(2)])
def test_no_row_is_left_far_below_its_optimum(model, tmp_path):
    rng = np.random.default_rng(1)
    rows = rng.poisson(np.exp(rng.normal(size=(40, 1)) + 1), size=(40, 3)).astype(float)
    vi = AmortizedVI(model, Polynomial(), refine=1e-4, max_iter=50, tol=1e-3, random_state=0)
    vi.fit(rows)
    skavi.save(vi, tmp_path / "fit.skavi")
    vi = skavi.load(tmp_path / "fit.skavi")
    assert vi.refine == 1e-4
    rows = rows[:10]
    gaps = amortization_gap(vi, rows).per_row
    plain = skavi.load(tmp_path / "fit.skavi").set_params(refine=None)
    left = plain.score_samples(rows) + gaps - vi.score_samples(rows)
    assert left.max() < 1e-2


def _rows_of(model):
    rng = np.random.default_rng(1)
    if isinstance(model, NonlinearModel):
        return rng.normal(scale=2.0, size=(20, 1))
    return rng.poisson(np.exp(rng.normal(size=(20, 1)) + 1), size=(20, 6)) + 1.0


MODELS = NonlinearModel(), FactorAnalysis(1, likelihood="poisson")
TOPICS = pytest.param(TopicModel(3), marks=pytest.mark.nightly)


@pytest.mark.parametrize("model", [*MODELS, TOPICS], ids=str)
def test_refined_rows_are_where_ascent_from_the_function_leads(model):
    """Against scipy's L-BFGS on each row's ELBO alone, to a hundredth of a nat."""
    rows = _rows_of(model)
    vi = AmortizedVI(model, Constant(), refine=1e-3, tol=1e-2, random_state=0).fit(rows)
    here, found = function_on(vi, rows), vi.score_samples(rows)
    plain = here.terms().numpy()
    for n in range(0, 20, 5):
        problem = here.problem.restricted(torch.tensor([n]))

        def loss(x, problem=problem):
            raw = torch.as_tensor(x)[None].requires_grad_(True)
            value = -problem.row_terms(raw, here.raw_globals).sum()
            return float(value.detach()), torch.autograd.grad(value, raw)[0][0].numpy()

        best = minimize(loss, here.raw[n].numpy(), jac=True, method="L-BFGS-B")
        assert found[n] > -best.fun - 0.01
    assert (found - plain).max() > 0.01


def test_coupled_rows_and_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="refine"):
        AmortizedVI(LinearModel(), Constant(), refine=0.0).fit(X)
    vi = AmortizedVI(LocalLevel(1.0, 1.0), Polynomial(), refine=1e-3)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="leave refine at None"):
        vi.fit(X).transform(X)


def test_a_row_where_the_elbo_is_not_concave_is_solved():
    vi = AmortizedVI(LinearModel(), Constant()).fit(X)
    here = function_on(vi, X)
    far = here.raw + torch.tensor([0.0, 40.0])  # sds of e^40: the entropy alone is concave
    assert bool((estimated_misses(here.problem, far, here.raw_globals) > 1.0).all())
