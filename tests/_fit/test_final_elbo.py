"""The ELBO at the end of a stochastic fit: the error of a mean over evaluations."""

import numpy as np
import pytest

from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import Polynomial
from skavi.models import BayesianDecoder, FactorAnalysis, LatentVariableModel
from skavi.noise import MonteCarlo
from skavi.solvers import Adam


@pytest.mark.parametrize(
    ("step", "tol", "n_evaluations"),
    [(0.01, None, 8), (0.1, None, 64), (0.1, 0.08, 64), (0.1, 0.09, 8)],
)
def test_the_standard_error_is_that_of_the_mean_of_the_evaluations(step, tol, n_evaluations):
    """sd / sqrt(n), the sd over n - 1: of n numbers in a row, `step` apart, whichever they are.

    Eight do where that is below 1e-4 of the ELBO (0.009 here) or half of tol for each of two rows,
    else all 64: sqrt(6) steps are the sd of eight, 0.087 the error of those 0.1 apart.
    """
    told = []

    class Rising(LatentVariableModel):
        def n_latents(self, n_features):
            return 1

        def global_prior(self, n_features):
            return {}

        def log_joint(self, theta, z, X):
            told.append(-100 + step * len(told))
            return told[-1] + 0 * z.sum()

    vi = FactorizedVI(Rising(), noise=MonteCarlo(4), solver=Adam(), max_iter=3, tol=tol)
    with pytest.warns(UserWarning, match="did not converge"):
        vi.set_params(random_state=0).fit(np.zeros((2, 1)))
    error = np.std(told[-n_evaluations:], ddof=1) / np.sqrt(n_evaluations)
    assert vi.elbo_se_ == pytest.approx(error, rel=1e-9)  # rounding


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("estimator", [FactorizedVI, AmortizedVI])
def test_rows_in_parts_weigh_as_they_do_at_once(estimator, monkeypatch):
    """The same draws, of 31 rows at a time and of all: sums differ by rounding only."""
    X, weights = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 4.0
    function = {"inference_function": Polynomial(1)} if estimator is AmortizedVI else {}

    def elbo(budget):
        monkeypatch.setattr("skavi._fit.final_elbo.FINAL_CELLS", budget)
        noise, solver = MonteCarlo(2), Adam()
        vi = estimator(FactorAnalysis(1), noise=noise, solver=solver, max_iter=3, **function)
        return vi.set_params(random_state=0).fit(X, sample_weight=weights).elbo_

    assert elbo(500) == pytest.approx(elbo(960), rel=1e-12)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_errors_of_rows_draws_do_not_add_up(monkeypatch):
    """Of 128 draws for each of 300 rows the sum's error is some nats.

    A row's term has a sd of a nat or two over draws, so that 128 draws, all rows' own, leave
    sqrt(300) / sqrt(128) = 1.5 for each; shared by all rows they leave 300 / sqrt(128) = 27.
    """
    monkeypatch.setattr("skavi._fit.final_elbo._MAX_EVALUATIONS", 8)
    monkeypatch.setattr("skavi._fit.final_elbo._MOST_DRAWS", 16)
    X = np.random.default_rng(0).normal(size=(300, 5))
    vi = AmortizedVI(BayesianDecoder(2, (31, 31)), max_iter=20, random_state=0)
    vi.fit(X)
    assert 0 < vi.elbo_se_ < 8
