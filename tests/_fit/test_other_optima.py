"""Rows with one optimum are told from others, and let alone."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from skavi import FactorizedVI
from skavi._fit import other_optima
from skavi.models import LinearModel, NonlinearModel

X = np.random.default_rng(0).normal(size=(120, 1)) * 4 + 1
Z = torch.linspace(-9, 9, 201, dtype=torch.float64)
DENSITIES = {
    "normal": (-0.5 * Z**2, False),
    "logistic": (-0.5 * Z**2 - torch.nn.functional.softplus(3 * Z - 2), False),
    "Laplace": (-Z.abs(), False),
    "flat": (torch.zeros_like(Z), False),
    "normal far away": (-0.5 * (1e6 - Z) ** 2, False),
    "Student's t": (-torch.log1p(Z**2), True),
    "two wells": (-((Z**2 - 4) ** 2), True),
    "a wave": (-0.5 * Z**2 + 2 * torch.cos(4 * Z), True),
    "nowhere below zero": (torch.where(Z < 0, -1e12, -Z), True),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_concave_densities_have_one_optimum(name):
    """Second differences of a concave function are never positive: those of a normal with sd 1 are
    minus the squared step. Student's t is not concave beyond its scale."""
    density, several = DENSITIES[name]
    found = other_optima._find_several(torch.stack([density, -(Z**2)]), 1)
    assert found.tolist() == ([0] if several else [])
    assert other_optima._find_several(density.expand(4, -1), 2).tolist() == [0, 1, 2, 3]


def spied(monkeypatch):
    """Note of how many rows basins are looked for."""
    looked, blurred = [], other_optima._blur

    def spy(density, *rest):
        looked.append(len(density))
        return blurred(density, *rest)

    monkeypatch.setattr(other_optima, "_blur", spy)
    return looked


def test_rows_of_a_linear_model_are_let_alone(monkeypatch):
    looked = spied(monkeypatch)
    FactorizedVI(LinearModel(), random_state=0).fit(X)
    assert not looked


def test_other_rows_find_what_they_found(monkeypatch):
    looked = spied(monkeypatch)
    few = FactorizedVI(NonlinearModel(), random_state=0).fit(X)
    assert max(looked) > len(X) / 2
    monkeypatch.setattr(other_optima, "_find_several", lambda rows, _: torch.arange(len(rows)))
    every = FactorizedVI(NonlinearModel(), random_state=0).fit(X)
    assert_array_equal(few.transform(X), every.transform(X))
    assert few.elbo_ == every.elbo_
