"""What a noise rule costs is stated, whether or not a finer rule fits and the fit converged."""

import numpy as np
import pytest

from benchmarks.certificate_problems import BernoulliItems
from closed_forms import linear_factorized
from skavi import FactorizedVI
from skavi.families import FullNormal
from skavi.models import LinearModel
from skavi.noise import FixedDraws, GaussHermite, QuasiMonteCarlo
from skavi.solvers import LBFGS, Newton

X = np.random.default_rng(0).normal(1, 2, (100, 1))
BEST = linear_factorized(X, 1.155, 2.43).elbo


def _short(**arguments):
    vi = FactorizedVI(LinearModel(), **arguments)
    with pytest.warns(match="did not converge"):
        return vi.fit(X)


@pytest.mark.parametrize("solver", [Newton(), LBFGS()])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_other_draws_judge_where_more_of_them_are_too_many(monkeypatch, solver, seed):
    """Each of the two judges adds an error of its own, so most state more than the truth."""
    monkeypatch.setattr("skavi._fit.defaults.affordable", lambda *_: False)
    vi = _short(noise=FixedDraws(64, seed), solver=solver)
    assert BEST - vi.elbo_ < 2 * vi.suboptimality_


def test_the_rule_is_judged_in_a_fit_that_ran_out_of_iterations():
    """In two L-BFGS iterations most of the gap is the solver's; in ten, the 16 draws'."""
    for max_iter in (2, 10):
        vi = _short(noise=FixedDraws(16), solver=LBFGS(), max_iter=max_iter)
        assert vi.n_iter_ == max_iter
        assert BEST - vi.elbo_ < 2 * vi.suboptimality_


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_in_five_dimensions_the_rule_chosen_costs_less_than_ten_tol(seed):
    """4,096 quasi-random points cost more; q(theta) is narrow, so three nodes are enough for it.

    Refined to 1e-7 of the ELBO, as in fewer dimensions, the rule would end with (12, 5) nodes. With
    a full covariance no globals share a dimension.
    """
    rng = np.random.default_rng(seed)
    answers = rng.uniform(size=(40, 2)) < 1 / (1 + np.exp(-rng.normal(size=(40, 1))))
    vi = FactorizedVI(BernoulliItems(), global_family=FullNormal()).fit(answers.astype(float))
    assert vi.noise_.n_nodes == (6, 3)
    assert vi.converged_
    assert vi.suboptimality_ < 10 * vi.tol_ * len(answers)


def test_rules_of_the_same_size_are_other_points():
    for rule in (FixedDraws(8), QuasiMonteCarlo(8)):
        nodes = [one.nodes(1, 1, 1, None).globals_ for one in (rule, *rule.independent())]
        assert all(len(each) == 8 for each in nodes)
        assert not any(bool((nodes[i] == nodes[i - 1]).any()) for i in range(3))
    assert GaussHermite().independent() == []
