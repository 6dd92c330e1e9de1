"""What the nonlinear model knows in closed form, against quadrature and automatic derivatives."""

import pytest
import torch

from skavi._curvature import arrow_derivatives
from skavi._data.rows import Rows
from skavi._fit.problem import Problem
from skavi.families import DiagonalNormal, FullNormal
from skavi.inference_functions import Table
from skavi.models import NonlinearModel
from skavi.noise import GaussHermite
from skavi.objective import bind

DERIVATIVES = ["g", "g_globals", "H", "C", "H_globals"]


class Plain(NonlinearModel):
    """The same model, differentiated automatically."""

    def row_derivatives(self, *arguments):
        return None


class Tilted(NonlinearModel):
    """A density of its own: nothing is known of it, and theta has nodes as z has."""

    def log_local(self, theta, z, X):
        return super().log_local(theta, z, X) + 0.0 * theta["theta"]


def problem_of(model, noise, n_rows=40, frozen=False, family=None):
    generator = torch.Generator().manual_seed(0)
    X = 2 * torch.randn(n_rows, 1, generator=generator, dtype=torch.float64)
    weights = torch.rand(n_rows, generator=generator, dtype=torch.float64)
    objective = bind(model.adapted(X, weights), DiagonalNormal(), family or DiagonalNormal(), X)
    return Problem(objective, Table(), Rows(X, weights), X, noise, None, frozen_globals=frozen)


def somewhere(n_rows=40):
    """Raw factors away from any optimum; theta's sd is exp(-1)."""
    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(n_rows, 2, generator=generator, dtype=torch.float64)
    return raw, torch.tensor([0.3, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("family", [DiagonalNormal(), FullNormal()])
def test_theta_is_integrated_out(family):
    """Given z the density is a square in theta: three nodes of it, and none, are exact."""
    known = problem_of(NonlinearModel(), GaussHermite(7), family=family)
    drawn = problem_of(Tilted(), GaussHermite((7, 3)), family=family)
    assert (known.objective.n_drawn_globals, drawn.objective.n_drawn_globals) == (0, 1)
    torch.testing.assert_close(known.row_terms(*somewhere()), drawn.row_terms(*somewhere()))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("n_numbers", [100, 20_000])  # in pieces of 14 rows, or all at once
def test_derivatives_are_those_of_the_elbo(n_numbers, frozen, monkeypatch):
    monkeypatch.setattr("skavi.models._one_column._NUMBERS", n_numbers)
    ours, plain = (
        arrow_derivatives(problem_of(model, GaussHermite(7), frozen=frozen), *somewhere())
        for model in (NonlinearModel(), Plain())
    )
    for name in DERIVATIVES:
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name))


def test_nothing_is_known_of_another_density_or_family():
    nodes, at = GaussHermite(7), somewhere()
    assert problem_of(NonlinearModel(), nodes).row_derivatives(*at) is not None
    assert problem_of(NonlinearModel(), nodes, family=FullNormal()).row_derivatives(*at) is None
    tilted = problem_of(Tilted(), nodes)
    assert (
        tilted.objective.model.row_derivatives(
            tilted.objective.local_factors(at[0]),
            tilted.objective.global_factor(at[1]),
            tilted.rows.X,
            tilted.current_nodes(),
            tilted.rows.weights,
            False,
        )
        is None
    )
