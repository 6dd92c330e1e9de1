"""Rows read by a fit: each solved to its own optimum, however coarse the fit was."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.distributions import Normal, Poisson

from skavi import AmortizedVI, FactorizedVI
from skavi._estimators.fitted_estimator import position_on
from skavi.inference_functions import Polynomial
from skavi.models import HierarchicalModel, LinearModel
from skavi.noise import GaussHermite
from skavi.objective import Objective


class Counts(HierarchicalModel):
    """z_n ~ N(0, 1), x_n ~ Poisson(exp(z_n))."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Poisson(z.exp())


@pytest.mark.parametrize("tol", [1e-8, 1e-2])
def test_rows_are_solved_beyond_the_fits_own_tolerance(tol):
    """Means and sds maximise x m - exp(m + s^2 / 2) - (m^2 + s^2) / 2 + log s."""
    X = np.arange(0.0, 40.0, 3.0)[:, None]
    vi = FactorizedVI(Counts(), noise=GaussHermite(24), tol=tol).fit(X)
    q = vi.posterior(X)

    def loss(at, x):
        m, s = at[0], np.exp(at[1])
        return np.exp(m + s**2 / 2) - x * m + (m**2 + s**2) / 2 - at[1]

    def slope(at, x):
        m, s = at[0], np.exp(at[1])
        rate = np.exp(m + s**2 / 2)
        return np.array([rate - x + m, s**2 * (rate + 1) - 1])

    for n, x in enumerate(X[:, 0]):
        at = minimize(loss, (np.log(x + 0.5), -1.0), (x,), jac=slope, tol=1e-10).x
        # 1e-9 nats a row leave 4e-5 sds at most, the last step of Newton's far less.
        assert q.mean[n, 0] == pytest.approx(at[0], abs=1e-6)
        assert q.sd[n, 0] == pytest.approx(np.exp(at[1]), abs=1e-6)


@pytest.mark.parametrize("context", [None, (1, 0)])
def test_terms_of_equal_rows_are_evaluated_once(context, monkeypatch):
    """Not where a function reads neighbours, so that equal rows have different factors."""
    X = np.array([[0.0], [1.0], [5.0]])
    often = X[[2, 0, 0, 1, 2, 2]]
    vi = AmortizedVI(LinearModel(), Polynomial(1, context=context), noise=GaussHermite(3)).fit(X)
    here, sizes, terms = position_on(vi, often), [], Objective.row_terms

    def counted(self, raw, *rest):
        sizes.append(len(raw))
        return terms(self, raw, *rest)

    monkeypatch.setattr(Objective, "row_terms", counted)
    found = here.terms()
    assert sizes == [3 if context is None else 6]
    with torch.no_grad():
        torch.testing.assert_close(found, here.problem.row_terms(here.raw, here.raw_globals))
