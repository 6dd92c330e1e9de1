"""The bound problem: batches of rows, and the ELBO at the end of a stochastic fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from skavi import AmortizedVI, FactorizedVI
from skavi._data.coupling import draw_rows
from skavi._fit import final_elbo
from skavi._fit.problem import Problem, inputs_of
from skavi.inference_functions import MLP
from skavi.models import FactorAnalysis, LinearModel
from skavi.noise import ClosedForm, MonteCarlo, QuasiMonteCarlo
from skavi.solvers import Adam

COLUMN = np.random.default_rng(0).normal(size=(60, 1))


@pytest.mark.parametrize(("n", "size"), [(10, 2), (10, 4), (10, 7), (10, 10), (10**12, 5)])
def test_a_batch_has_different_rows_however_many_there_are(n, size):
    """Of 1e12 rows nothing of that length could be held, let alone permuted."""
    index = draw_rows(n, size, torch.Generator().manual_seed(0))
    assert len(index.unique()) == size
    assert int(index.min()) >= 0
    assert int(index.max()) < n


@pytest.mark.parametrize("size", [2, 4, 7])
def test_every_set_of_rows_is_drawn_as_often(size):
    """Each row is in a share size / n of batches, each pair in size (size - 1) / (n (n - 1))."""
    n, n_draws, generator = 10, 4000, torch.Generator().manual_seed(1)
    together = torch.zeros(n, n)
    for _ in range(n_draws):
        index = draw_rows(n, size, generator)
        together[index[:, None], index] += 1 / n_draws
    for share, expected in [
        (together.diagonal(), size / n),
        (together[~torch.eye(n, dtype=torch.bool)], size * (size - 1) / (n * (n - 1))),
    ]:
        sd = np.sqrt(expected * (1 - expected) / n_draws)
        assert float((share - expected).abs().max()) < 4.5 * sd  # of at most 90 shares


def _bound(vi, X):
    rows, fit = vi._rows(X), vi._fitted_model
    generator = torch.Generator().manual_seed(0)
    function = vi.inference_function_
    features = function.features(inputs_of(vi.model_, function, rows.X))
    problem = Problem(fit.objective, function, rows, features, vi.noise_, generator)
    return problem, fit.state(rows)


@pytest.mark.parametrize("estimator", [FactorizedVI, AmortizedVI])
@pytest.mark.parametrize("size", [1, 7, 60, 100])
def test_the_elbo_in_parts_is_the_elbo(estimator, size):
    problem, state = _bound(estimator(LinearModel(), noise=QuasiMonteCarlo(64)).fit(COLUMN), COLUMN)
    parts = float(problem.elbo_in_parts(state, size))
    assert parts == pytest.approx(float(problem.elbo(state)), rel=1e-12)  # rounding
    drawn = [problem.with_noise(MonteCarlo(4)) for _ in range(2)]
    parts, whole = (replace(p, generator=torch.Generator().manual_seed(0)) for p in drawn)
    again = float(parts.elbo_in_parts(state, size))
    assert again == pytest.approx(float(whole.elbo(state)), rel=1e-12)  # each row's own draws


@pytest.mark.parametrize("budget", [4_000_000, 2_000])
def test_the_final_elbo_of_a_stochastic_fit_is_within_its_error(monkeypatch, budget):
    """Beside the closed form of the same q, whether all rows fit one part or not."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 1)) @ np.ones((1, 4)) + 0.5 * rng.normal(size=(120, 4))
    monkeypatch.setattr(final_elbo, "FINAL_CELLS", budget)
    vi = AmortizedVI(
        FactorAnalysis(1), MLP((8,)), noise=MonteCarlo(), solver=Adam(schedule=_short), max_iter=300
    )
    with pytest.warns(UserWarning, match="did not converge"):
        vi.set_params(random_state=0).fit(X)
    problem, state = _bound(vi, X)
    exact = float(problem.with_noise(ClosedForm()).elbo(state))
    elbo, error = final_elbo.final_elbo(problem, state)
    assert 0 < error < 1e-3 * abs(exact)
    assert abs(elbo - exact) < 5 * error


def test_the_final_elbo_is_off_by_its_standard_error_and_no_bias(monkeypatch):
    """Of log posteriors that are far from quadratic (log noise far from its optimum).

    Errors over stated standard errors, of evaluations with 100 sets of seeds: of 8 evaluations
    each they have Student's distribution with 7 degrees of freedom, whose sd is 1.18.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 1)) @ np.ones((1, 4)) + 0.5 * rng.normal(size=(30, 4))
    vi = FactorizedVI(FactorAnalysis(1), noise=MonteCarlo(), solver=Adam(), max_iter=40)
    with pytest.warns(UserWarning, match="did not converge"):
        vi.set_params(random_state=0).fit(X)
    problem, state = _bound(vi, X)
    exact = float(problem.with_noise(ClosedForm()).elbo(state))
    off = []
    for seed in range(0, 6400, 64):
        monkeypatch.setattr(final_elbo, "_SEED", seed)
        elbo, error = final_elbo.final_elbo(problem, state)
        off.append((elbo - exact) / error)
    assert abs(np.mean(off)) < 4 * 1.18 / 10  # four standard errors of a mean of 100
    assert 0.8 < np.std(off) < 1.6  # 1.18, with a hundred of them: four standard errors again


def _short(iteration):
    return 1 / (1 + iteration / 50)
