"""The amortization gap against closed forms, finite differences and its own definition."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.exceptions import NotFittedError
from torch.distributions import Normal, Poisson

from closed_forms import (
    linear_constant,
    linear_factorized,
    local_level_factorized,
    local_level_windowed_linear,
    random_effects_meanfield_noncentred,
    saw_factorized,
    saw_linear,
)
from skavi import AmortizedVI, FactorizedVI, amortization_gap
from skavi._estimators.fitted_estimator import position_on
from skavi.diagnostics import gap as gap_module
from skavi.families import DiagonalNormal
from skavi.inference_functions import Constant, Polynomial
from skavi.models import (
    FactorAnalysis,
    GaussianProcess,
    HierarchicalModel,
    LatentVariableModel,
    LinearModel,
    LocalLevel,
    RandomEffects,
    SawTimeSeries,
)
from skavi.noise import MonteCarlo, QuasiMonteCarlo
from skavi.solvers import Adam

# Gaps that no window closes, and narrow functions, are what is measured here.
pytestmark = pytest.mark.filterwarnings(
    "ignore::skavi.closability.AmortizationWarning",
    "ignore::skavi.models.CouplingBiasWarning",
)
LEVEL = {"level_sd": 0.7, "noise_sd": 1.2, "initial_mean": 0.5, "initial_sd": 2.0}
LEVEL_ARGUMENTS = {"m0": 0.5, "s0": 2.0, "q": 0.7, "r": 1.2}


@pytest.fixture(scope="module")
def column():
    return 1 + 2.7 * np.random.default_rng(0).normal(size=(60, 1))


@pytest.fixture(scope="module")
def series():
    return np.random.default_rng(1).normal(size=(60, 1)).cumsum(0)


class CountsWithoutGlobals(HierarchicalModel):
    """z_n ~ N(0, 1), x_n ~ Poisson(exp(z_n)): no globals, no closed form."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Poisson(z.exp())


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(2).poisson(2.0, size=(40, 1)).astype(float)


# Totals against closed forms: rel=1e-8 of the ELBOs, that is 1e-6 nats


def test_constant_on_the_linear_model(column):
    model = LinearModel()
    gap = amortization_gap(AmortizedVI(model, Constant()).fit(column), column)
    low = linear_constant(column, model.tau, model.sigma).elbo
    high = linear_factorized(column, model.tau, model.sigma).elbo
    assert gap.total == pytest.approx(high - low, abs=1e-6)
    assert gap.elbo_amortized == pytest.approx(low, rel=1e-8)
    assert gap.elbo_factorized == pytest.approx(high, rel=1e-8)
    assert gap.relative == gap.total / abs(gap.elbo_factorized)
    assert gap.standard_error == 0


def test_polynomial_on_the_linear_model_leaves_no_gap(column):
    gap = amortization_gap(AmortizedVI(LinearModel(), Polynomial(1)).fit(column), column)
    assert abs(gap.total) < 1e-6
    assert np.abs(gap.per_row).max() < 1e-6
    assert gap.gradient_norm.max() < 1e-3  # a gain is half the gradient squared
    assert gap.gradient_norm.max() ** 2 < 1e-6


@pytest.mark.parametrize("context", [(0, 0), (0, 1), (1, 0), (2, 1)])
def test_linear_functions_of_windows_on_the_saw(series, context):
    vi = AmortizedVI(SawTimeSeries(initial=2.0), Polynomial(1, context=context)).fit(series)
    gap = amortization_gap(vi, series)
    low = saw_linear(series, initial=2.0, context=context).elbo
    high = saw_factorized(series, initial=2.0).elbo
    assert gap.total == pytest.approx(high - low, abs=1e-6)
    assert (gap.total < 1e-6) == (context[0] >= 1)


@pytest.mark.parametrize("context", [(0, 0), (1, 1), (4, 4)])
def test_linear_functions_of_windows_on_the_local_level(series, context):
    vi = AmortizedVI(LocalLevel(**LEVEL), Polynomial(1, context=context), tol=1e-10).fit(series)
    low = local_level_windowed_linear(series, **LEVEL_ARGUMENTS, context=context)
    high = local_level_factorized(series, **LEVEL_ARGUMENTS)
    # The closed form holds the sd constant, here it may move with the window: no less is reached.
    gap = amortization_gap(vi, series)
    assert gap.elbo_amortized >= low.elbo - 1e-6
    assert gap.elbo_factorized == pytest.approx(high.elbo, rel=1e-8)
    assert gap.total > 0.01


# A row at a time


def cases():
    return {
        "linear": (LinearModel(), Constant(), "column"),
        "saw": (SawTimeSeries(), Polynomial(1, context=(0, 0)), "series"),
        "local level": (LocalLevel(**LEVEL), Polynomial(1), "series"),
        "local level, latent variances": (LocalLevel(), Polynomial(1), "series"),
        "Gaussian process": (GaussianProcess(likelihood="poisson"), Polynomial(1), "timed"),
        "counts": (CountsWithoutGlobals(), Polynomial(1), "counts"),
    }


@pytest.fixture(scope="module")
def timed(counts):
    return np.column_stack([np.arange(20.0) / 2, counts[:20, 0]])


@pytest.fixture(scope="module", params=cases())
def measured(request):
    model, function, data = cases()[request.param]
    X = request.getfixturevalue(data)
    vi = AmortizedVI(model, function, random_state=0).fit(X)
    return vi, X, amortization_gap(vi, X)


def elbo_of_rows(vi, X):
    """The ELBO with q(theta) frozen, as a function of raw factors, and the fit's own factors."""
    here = position_on(vi, X)
    return lambda raw: float(here.problem.elbo_of(raw, here.raw_globals)), here.raw


def test_no_gap_is_negative(measured):
    vi, X, gap = measured
    assert gap.per_row.shape == gap.gradient_norm.shape == (len(X),)
    assert gap.per_row.min() > -1e-9  # rounding
    assert gap.total > -vi.tol_ * len(X)
    assert gap.per_row.max() > 1e-4  # these functions are too narrow
    if vi.model_.coupling.separable:
        assert gap.per_row.sum() <= gap.total + 1e-6


def test_a_rows_gain_is_that_of_its_factor_alone(measured):
    """Against Nelder and Mead's simplex, which knows nothing of gradients or of other rows."""
    vi, X, gap = measured
    elbo, start = elbo_of_rows(vi, X)
    before = elbo(start)
    for n in (0, 7, len(X) - 1):

        def loss(row, n=n):
            raw = start.clone()
            raw[n] = torch.as_tensor(row)
            return before - elbo(raw)

        at = start[n].numpy()
        simplex = np.vstack([at, at + 0.1 * np.eye(2)])
        options = {"xatol": 1e-7, "fatol": 1e-10, "maxiter": 2000, "initial_simplex": simplex}
        best = minimize(loss, at, method="Nelder-Mead", options=options)
        assert gap.per_row[n] == pytest.approx(-best.fun, abs=1e-6)


def test_gradient_norms_are_finite_differences(measured):
    vi, X, gap = measured
    elbo, raw = elbo_of_rows(vi, X)
    steps = vi.family_.steps(vi.family_.factors(raw, 1))
    for n in (0, 7, len(X) - 1):
        slopes = []
        for p in range(raw.shape[1]):
            step = torch.zeros_like(raw)
            step[n, p] = 1e-5 * steps[n, p]
            slopes.append((elbo(raw + step) - elbo(raw - step)) / 2e-5)
        # Differences of order 1e-10 of ELBOs of some 100 nats, over 2e-5.
        assert gap.gradient_norm[n] == pytest.approx(np.linalg.norm(slopes), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("family", ["counts", "linear"])
def test_rows_add_up_where_the_globals_stand_still(family, counts, column):
    """No globals at all, or ones that the optimum leaves where they are (the linear model's)."""
    model, X = (CountsWithoutGlobals(), counts) if family == "counts" else (LinearModel(), column)
    gap = amortization_gap(AmortizedVI(model, Constant()).fit(X), X)
    assert gap.per_row.sum() == pytest.approx(gap.total, rel=1e-6)


def test_coupled_rows_together_gain_more_than_the_best_alone(series):
    vi = AmortizedVI(LocalLevel(**LEVEL), Polynomial(1)).fit(series)
    gap = amortization_gap(vi, series)
    assert gap.total > gap.per_row.max()
    assert gap.per_row.sum() != pytest.approx(gap.total, rel=0.1)


def test_a_given_factorized_fit_changes_nothing_once_converged(column, series):
    for model, X in ((LinearModel(), column), (LocalLevel(), series), (FactorAnalysis(1), column)):
        vi = AmortizedVI(model, Constant(), random_state=0).fit(X)
        one = amortization_gap(vi, X)
        other = amortization_gap(vi, X, FactorizedVI(model, random_state=0).fit(X))
        assert other.total == pytest.approx(one.total, abs=1e-5)  # tol: 1e-8 nats a row
        np.testing.assert_array_equal(one.per_row, other.per_row)


def test_a_factorized_fit_that_stopped_early_makes_no_negative_gap(counts):
    vi = AmortizedVI(CountsWithoutGlobals(), Polynomial(2)).fit(counts)
    best = amortization_gap(vi, counts)
    poor = FactorizedVI(CountsWithoutGlobals(), noise=MonteCarlo(1), solver=Adam(), max_iter=1)
    with pytest.warns(UserWarning, match="did not converge"):
        poor.fit(counts)
    gap = amortization_gap(vi, counts, poor)
    assert gap.total == pytest.approx(best.total, abs=1e-6)


def test_rows_solved_at_the_amortized_globals_stand_in_for_a_worse_fit(column):
    """A fit of other rows has its q(theta) 50 away, and an ELBO hundreds of nats below.

    The linear model's globals stand still, so that what rows gain alone is the whole gap.
    """
    amortized = AmortizedVI(LinearModel(), Constant()).fit(column)
    far = FactorizedVI(LinearModel()).fit(column + 50)
    gap = amortization_gap(amortized, column, far)
    assert gap.total == pytest.approx(gap.per_row.sum(), rel=1e-6)  # tol: 1e-8 nats a row


@pytest.mark.parametrize("given", [False, True])
def test_a_fit_that_moves_the_globals_is_the_better_one(given):
    """The independent mean-field optimum, above what rows gain at the amortized q(theta)."""
    X = np.array(
        [[28, 15], [8, 10], [-3, 16], [7, 11], [-1, 9], [1, 11], [18, 10], [12, 18]], dtype=float
    )
    model = RandomEffects(tau_scale=20.0)
    amortized = AmortizedVI(model, Constant()).fit(X)
    gap = amortization_gap(amortized, X, FactorizedVI(model).fit(X) if given else None)
    best = random_effects_meanfield_noncentred(*X.T, tau_scale=20.0).elbo
    assert gap.elbo_factorized == pytest.approx(best, abs=1e-5)  # tol, and nodes
    assert gap.total == pytest.approx(best - amortized.elbo_, abs=1e-5)
    assert gap.total > gap.per_row.sum() + 1e-3


def test_the_fit_is_left_alone(column):
    vi = AmortizedVI(LinearModel(), Constant()).fit(column)
    before = vi.transform(column), vi.elbo_
    amortization_gap(vi, column)
    np.testing.assert_array_equal(vi.transform(column), before[0])
    assert vi.elbo_ == before[1]


# Random noise


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("noise", [QuasiMonteCarlo(64), MonteCarlo(8)])
def test_random_noise_has_a_standard_error(noise, counts):
    solver = None if noise.deterministic else Adam(learning_rate=0.05)
    vi = AmortizedVI(
        CountsWithoutGlobals(), Constant(), noise=noise, solver=solver, random_state=0, max_iter=500
    )
    exact = amortization_gap(AmortizedVI(CountsWithoutGlobals(), Constant()).fit(counts), counts)
    gap = amortization_gap(vi.fit(counts), counts)
    assert 0 < gap.standard_error < 0.05 * gap.total
    # The draws are also what the fits were solved on: their bias comes on top of the error.
    assert gap.total == pytest.approx(exact.total, abs=5 * gap.standard_error + 0.02 * exact.total)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_standard_error_is_that_of_the_mean_over_eight_scramblings():
    """Of differences d_i by hand: the sd over n - 1, by the root of n.

    The log joint is c k^2 more at its k-th call. A scrambling takes a call for the amortized fit,
    and one for each of two rivals at the same optimum: the last is ahead by c (k + 2)^2 - c k^2 =
    4 c (k + 1), and k goes up by 3, so that d_i = 12 c i + constant. All is below solvers' tol.
    """
    c, told = 1e-10, []

    class Accelerating(LatentVariableModel):
        def n_latents(self, n_features):
            return 1

        def global_prior(self, n_features):
            return {}

        def log_joint(self, theta, z, X):
            told.append(c * len(told) ** 2)
            return told[-1] - 0.5 * (z**2).sum()

    rules = {"noise": MonteCarlo(4), "solver": Adam(), "max_iter": 2, "tol": 1e-6}
    X = np.zeros((3, 1))
    amortized = AmortizedVI(Accelerating(), Constant(), random_state=0, **rules).fit(X)
    factorized = FactorizedVI(Accelerating(), random_state=0, **rules).fit(X)
    gap = amortization_gap(amortized, X, factorized)
    error = np.std(12 * c * np.arange(8), ddof=1) / np.sqrt(8)
    assert gap.standard_error == pytest.approx(error, rel=1e-4)  # of ELBOs of some nats, rounded


# Errors


def test_wrong_kinds_are_named(column):
    fitted = AmortizedVI(LinearModel(), Polynomial(1)).fit(column)
    with pytest.raises(TypeError, match="amortized must be a fitted AmortizedVI, got Factorized"):
        amortization_gap(FactorizedVI(LinearModel()), column)
    with pytest.raises(TypeError, match="factorized must be a fitted FactorizedVI, got Amortized"):
        amortization_gap(fitted, column, fitted)
    with pytest.raises(NotFittedError):
        amortization_gap(AmortizedVI(LinearModel()), column)
    with pytest.raises(NotFittedError):
        amortization_gap(fitted, column, FactorizedVI(LinearModel()))
    with pytest.raises(ValueError, match="features"):
        amortization_gap(
            fitted, np.hstack([column, column]), FactorizedVI(LinearModel()).fit(column)
        )


def test_rows_that_the_function_solves_better_are_counted(monkeypatch):
    """Three rows whose own solver ends one unit off, and so below the function's exact factors."""
    X = np.array([[0.0], [1.0], [5.0]])
    amortized = AmortizedVI(LinearModel(), Polynomial(1)).fit(X)
    assert amortization_gap(amortized, X).n_amortized_better == 0
    own = gap_module.solve_rows

    def poor(problem, raw_globals, tol, start=None):
        raw, converged = own(problem, raw_globals, tol, start)
        return raw + 1.0 if start is None else raw, converged

    monkeypatch.setattr(gap_module, "solve_rows", poor)
    assert amortization_gap(amortized, X).n_amortized_better == 3


@pytest.mark.filterwarnings("ignore::skavi.closability.AmortizationWarning")
def test_a_chain_of_factors_is_compared_within_the_functions_family(series):
    """What independent factors lose beside factors that know their neighbours is no gap of f."""
    vi = AmortizedVI(LocalLevel(**LEVEL), Polynomial(1), tol=1e-10).fit(series)
    chain = FactorizedVI(LocalLevel(**LEVEL)).fit(series)
    independent = FactorizedVI(LocalLevel(**LEVEL), family=DiagonalNormal()).fit(series)
    assert chain.elbo_ > independent.elbo_ + 0.1
    for factorized in (None, chain, independent):
        gap = amortization_gap(vi, series, factorized)
        assert gap.elbo_factorized == pytest.approx(independent.elbo_, abs=1e-6)
