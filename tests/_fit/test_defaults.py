"""Every line of the table of automatic choices, which docs/explanation/solvers.rst has too."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skavi._fit import defaults
from skavi.families import DiagonalNormal
from skavi.inference_functions import MLP, Constant, Polynomial, Table
from skavi.models import (
    BayesianDecoder,
    FactorAnalysis,
    GaussianProcess,
    LocalLevel,
    NonlinearModel,
    RandomEffects,
    TopicModel,
)
from skavi.noise import (
    ClosedForm,
    FixedDraws,
    GaussHermite,
    LinearPredictor,
    MonteCarlo,
    QuasiMonteCarlo,
)
from skavi.objective import bind
from skavi.solvers import LBFGS, Adam, CoordinateAscent, Newton, Setting


def chosen(model, n_rows, n_features, function=None, n_parameters=0):
    """Return the noise rule and the solver for a model of data of this size; few rows are made."""
    X = torch.arange(1.0, 1 + 8 * n_features).double().reshape(8, n_features)
    model = model.adapted(X, torch.ones(8).double())
    family, global_family = DiagonalNormal(), clone(model.global_family(None))
    objective = bind(model, family, global_family, X)
    function = function or Table()
    setting = Setting(objective, function, None, n_rows, n_parameters)
    noise = defaults.default_noise(setting)
    return noise, defaults.default_solver(replace(setting, noise=noise))


class Walk(LocalLevel):
    """A Markov model without closed forms."""

    def has_closed_form(self, family, global_family):
        return False

    def has_coordinate_updates(self, family, global_family):
        return False


class Joint(GaussianProcess):
    """One log joint for all rows without closed forms."""

    def has_closed_form(self, family, global_family):
        return False


class ByHand(FactorAnalysis):
    """A model with a method of its own: nothing is known of it."""

    def predictor(self, theta, z, covariates=None):
        return super().predictor(theta, z, covariates)


LINES = {
    "closed form": ((FactorAnalysis(2), 1000, 5), ClosedForm, CoordinateAscent),
    "few latents, few globals": ((NonlinearModel(), 1000, 1), GaussHermite, Newton),
    "more of them": ((ByHand(5, likelihood="bernoulli"), 1000, 3), QuasiMonteCarlo, Newton),
    "linear cells": ((FactorAnalysis(5, likelihood="bernoulli"), 50, 30), LinearPredictor, Newton),
    "wide tables": ((FactorAnalysis(5, likelihood="bernoulli"), 50, 200), LinearPredictor, Newton),
    "wider ones": ((FactorAnalysis(5, likelihood="bernoulli"), 50, 210), LinearPredictor, LBFGS),
    "one latent": ((FactorAnalysis(1, likelihood="bernoulli"), 50, 9), GaussHermite, Newton),
    "one": ((FactorAnalysis(1, likelihood="student_t"), 3999, 9), GaussHermite, Newton),
    "one, long": ((FactorAnalysis(1, likelihood="student_t"), 4000, 9), LinearPredictor, Newton),
    "narrow cells": ((FactorAnalysis(2, likelihood="student_t"), 50, 9), LinearPredictor, Newton),
    "Markov model": ((Walk(), 1000, 1), GaussHermite, Newton),
    "few coupled rows": ((Joint(), 100, 2), QuasiMonteCarlo, Newton),
    "many coupled rows": ((Joint(), 1000, 2), QuasiMonteCarlo, LBFGS),
    "small network": ((NonlinearModel(), 1000, 1, MLP((16,)), 500), GaussHermite, Newton),
    "larger network": ((NonlinearModel(), 1000, 1, MLP((64, 64)), 5000), GaussHermite, LBFGS),
    "many globals": ((ByHand(9, likelihood="bernoulli"), 50, 30), QuasiMonteCarlo, LBFGS),
    "too many globals for a network": (
        (FactorAnalysis(50), 1000, 800, MLP((64,)), 9000),
        ClosedForm,
        Adam,
    ),
    "coarse tol": ((TopicModel(3), 1000, 30, MLP((16,)), 500), ClosedForm, Adam),
    "decoder": ((BayesianDecoder(2), 100, 5), MonteCarlo, Adam),
    "beyond the budget": (
        (FactorAnalysis(5, likelihood="bernoulli"), 10_000_000, 5),
        MonteCarlo,
        Adam,
    ),
    "effects": ((RandomEffects(), 1000, 2), GaussHermite, Newton),
}


@pytest.mark.parametrize("line", LINES)
def test_what_is_chosen_is_what_the_table_says(line):
    case, noise, solver = LINES[line]
    assert tuple(map(type, chosen(*case))) == (noise, solver)


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("repeats", [1, 3])
def test_more_columns_than_rows_do_not_add_components(missing, repeats):
    """Three planted components of 300 columns are found from 30 rows, with and without holes.

    The covariance of 30 rows has at most 29 directions: each is above the average over 300 columns.
    Rows that weigh 3 are three equal rows.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3)) @ rng.normal(size=(3, 300)) + 0.5 * rng.normal(size=(30, 300))
    X[rng.random(X.shape) < missing] = np.nan
    X = torch.as_tensor(X)
    weighed = defaults.default_model(X, torch.full((30,), float(repeats), dtype=X.dtype))
    repeated = defaults.default_model(X.repeat(repeats, 1), torch.ones(30 * repeats).double())
    assert weighed.n_components == repeated.n_components
    if repeats == 1:
        assert weighed.n_components == 3


def test_the_table_in_the_docs_is_that_of_the_module():
    page = Path(__file__).parents[2] / "docs" / "explanation" / "solvers.rst"
    plain = page.read_text().replace("`", "")
    words = " ".join(plain.split())
    for line in defaults.__doc__.splitlines()[2:]:
        assert " ".join(line.split()) in words


@pytest.mark.parametrize(("n_rows", "n_draws"), [(1, 128), (3, 42), (40, 3), (100, 1), (10**5, 1)])
def test_decoders_of_few_rows_take_more_draws_a_step(n_rows, n_draws):
    """Rows times draws are at most 128, but for at least one draw."""
    X = torch.zeros(n_rows, 2, dtype=torch.float64)
    model = BayesianDecoder(1, (3,), noise_sd=1.0)
    objective = bind(model, DiagonalNormal(), DiagonalNormal(), X)
    noise = defaults.default_noise(Setting(objective, Table(), None, n_rows))
    assert noise.n_draws == n_draws


# --- tolerances -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    [(Table(), 1e-8), (Constant(), 1e-8), (Polynomial(2), 1e-8), (MLP((4,)), 1e-4), (None, 1e-4)],
)
def test_networks_are_solved_less_closely(function, expected):
    assert defaults.tolerance(None, NonlinearModel(), function) == expected
    assert defaults.tolerance(1e-12, TopicModel(), function) == 1e-12
    assert isinstance(defaults.tolerance(2**62, TopicModel(), function), float)
    decoder = BayesianDecoder(2)
    assert defaults.tolerance(None, decoder, function, None, 100) == 0.5
    answers = BayesianDecoder(2, likelihood="bernoulli")  # at most log 2 nats a cell
    assert defaults.tolerance(None, answers, function, None, 100) == 0.1
    assert defaults.tolerance(None, decoder, function, FixedDraws(2), 64) < 1e-2
    coarser = defaults.tolerance(None, TopicModel(), function)
    assert coarser == max(expected, TopicModel().coarsest_tol) > 1e-8


def test_a_share_of_a_wide_gap_is_enough():
    assert defaults.tolerance_of_gap(1e-4, 0.5) == pytest.approx(0.005)
    assert defaults.tolerance_of_gap(1e-4, -0.5) == defaults.tolerance_of_gap(1e-4, 1e-3) == 1e-4


class Drawn(NonlinearModel):
    """The model with nodes of theta, too."""

    def integrated(self, global_family):
        return ()


@pytest.mark.parametrize(("model", "n_rules"), [(NonlinearModel(), 1), (Drawn(), 2)])
def test_rules_to_compare_with_have_more_nodes_here(model, n_rules):
    """Nodes of theta are refined where it has any, and those of z."""
    X = torch.zeros(10, 1).double()
    model = model.adapted(X, torch.ones(10).double())
    objective = bind(model, DiagonalNormal(), DiagonalNormal(), X)
    setting = Setting(objective, Table(), GaussHermite(3), 10)
    assert len(defaults.finer_rules(setting.noise, setting)) == n_rules
