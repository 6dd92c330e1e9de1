"""Draws from q with their densities: many at once are what one at a time are."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from skavi import FactorizedVI
from skavi._estimators.fitted_estimator import position_on
from skavi.models import LocalLevel, RandomEffects
from skavi.posterior import _draws
from skavi.posterior._draws import FittedPosterior

STUDIES = np.random.default_rng(0).normal(size=(5, 2)) ** 2 + 0.5


@pytest.mark.parametrize(
    ("model", "evaluations"),
    [(RandomEffects(), 2), (LocalLevel(1.0, 1.0), 8)],
    ids=["rows", "chain"],
)
def test_draws_at_once_are_those_one_by_one(model, evaluations, monkeypatch):
    """A chain is drawn by solving with a band, for which torch has no batches: after two tries."""
    X = STUDIES[:, : 1 if isinstance(model, LocalLevel) else 2]
    together = FittedPosterior.of(position_on(FactorizedVI(model, random_state=0).fit(X), X))
    apart = replace(together, objective=replace(together.objective, batched=False))
    monkeypatch.setattr(_draws, "EVALUATED_NUMBERS", 4 * X.size)  # four draws at once, then two
    seen, calls = FittedPosterior.at, []
    monkeypatch.setattr(FittedPosterior, "at", lambda *a: (calls.append(1), seen(*a))[1])
    some = list(together.draws(6, np.random.RandomState(0)))
    assert len(calls) == evaluations
    for one, other in zip(some, apart.draws(6, np.random.RandomState(0)), strict=True):
        assert one.theta.keys() == other.theta.keys()
        for each in fields(one):
            if each.name != "theta":
                torch.testing.assert_close(getattr(one, each.name), getattr(other, each.name))
