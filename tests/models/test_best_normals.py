"""Best normal factors of one number: the gradient of what they maximise is zero."""

import numpy as np
import pytest
import torch

from skavi.models._best_normals import (
    best_normals,
    best_weights,
    exponential,
    logistic,
    with_normal_prior,
)
from skavi.models._global_space import expected_log_weights

CASES = {
    "logit": logistic(torch.tensor([3.0, 40.0]).double(), torch.tensor([0.0, 25.0]).double()),
    "log rate": exponential(torch.tensor([0.0, 90.0]).double(), torch.tensor([4.0, 30.0]).double()),
}


@pytest.mark.parametrize("name", CASES)
def test_a_factor_is_where_its_term_is_level(name):
    loc, scale = torch.zeros(2).double(), torch.full((2,), 2.0).double()
    expectation = with_normal_prior(CASES[name], loc, scale)
    start = torch.tensor([4.0, -3.0]).double(), torch.tensor([2.0, 0.01]).double()
    mean, sd = start
    for _ in range(18):
        mean, sd = best_normals(expectation, mean, sd)
    _require_level(lambda m, log_s: expectation(m, log_s.exp())[0] + log_s, mean, sd)


def test_no_number_ends_lower_than_it_started():
    expectation = CASES["log rate"]
    mean, sd = torch.tensor([-50.0, 60.0]).double(), torch.tensor([9.0, 9.0]).double()
    before = expectation(mean, sd)[0] + sd.log()
    mean, sd = best_normals(expectation, mean, sd)
    assert bool((expectation(mean, sd)[0] + sd.log() >= before).all())


def test_best_weights_maximise_the_dirichlet_term():
    total = torch.tensor([4.0, 1.5, 9.0]).double()
    mean, sd = torch.zeros(2).double(), torch.ones(2).double()
    for _ in range(18):
        mean, sd = best_weights(total, mean, sd)
    terms = lambda m, log_s: total @ expected_log_weights(m, log_s.exp()) + log_s.sum()  # noqa: E731
    _require_level(terms, mean, sd)


def test_rounding_of_the_value_keeps_no_number_from_its_optimum():
    """A move of 1e-7 sds gains 1e-14 nats, which a value of 1,000 does not show."""
    totals = 500 * torch.rand(200, 3, generator=torch.Generator().manual_seed(0)).double() + 200
    mean, sd = torch.zeros(200, 2).double(), torch.ones(200, 2).double()
    for _ in range(18):
        mean, sd = best_weights(totals, mean, sd)
    moved, _ = best_weights(totals, mean + 1e-7 * sd, sd)
    assert float(((moved - mean) / sd).abs().max()) < 1e-9


def _require_level(terms, mean, sd):
    """To 1e-6: the root of 1e-12, since gains below the rounding of a value of 100 are not seen."""
    point = [each.clone().requires_grad_(True) for each in (mean, sd.log())]
    slopes = torch.autograd.grad(terms(*point).sum(), point)
    np.testing.assert_allclose(torch.cat(slopes), 0, atol=1e-6)
