"""Nodes of cells' predictors, against quadrature over both sides, and the fits that take them."""

from itertools import product

import numpy as np
import pytest
import torch

from skavi import FactorizedVI
from skavi._curvature import arrow_derivatives, sum_of_rows
from skavi._data.rows import Rows
from skavi._fit.problem import Problem
from skavi._numerics.quadrature import hermite_rule, product_rule
from skavi.families import DiagonalNormal
from skavi.inference_functions import Table
from skavi.models import FactorAnalysis
from skavi.models._likelihoods import NegativeBinomialCells
from skavi.models._noise_factors import NoiseFactors
from skavi.models._poisson_rates import Side
from skavi.models._predictor_nodes import predictor_nodes
from skavi.noise import GaussHermite, LinearPredictor
from skavi.objective import bind
from skavi.solvers import Newton


def sides(k, spread, n_rows=5, n_columns=4):
    """Factors of rows and columns with sds about `spread` of loadings, and known numbers."""
    rng = np.random.default_rng(0)
    columns = Side(
        torch.as_tensor(rng.normal(size=(n_columns, k + 2))),
        torch.as_tensor((spread * rng.uniform(0.5, 1.5, (n_columns, k + 2))) ** 2),
    )
    rows = Side(
        torch.as_tensor(rng.normal(size=(n_rows, k))),
        torch.as_tensor(rng.uniform(0.2, 0.8, (n_rows, k)) ** 2),
    )
    known = torch.as_tensor(np.c_[rng.normal(size=n_rows), np.ones(n_rows)])
    return rows, columns, known, torch.as_tensor(rng.normal(size=(n_rows, 1)))


RULE = list(zip(*(each.tolist() for each in hermite_rule(11)), strict=True))


def by_quadrature(rows, columns, known, offset, f, n_nodes):
    """E f(eta) over nodes of every latent; given z eta is normal, with nodes of its own."""
    nodes, weights = (
        torch.as_tensor(each) for each in product_rule((n_nodes,) * rows.mean.shape[1])
    )
    inner, shares = (torch.as_tensor(each) for each in product_rule((20,)))
    total = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        z = torch.cat([rows.mean + rows.variance.sqrt() * node, known], -1)
        mean, sd = z @ columns.mean.mT + offset, (z**2 @ columns.variance.mT).sqrt()
        for e, share in zip(inner[:, 0], shares, strict=True):
            total = total + weight * share * f(mean + e * sd)
    return total


@pytest.mark.parametrize(("k", "spread"), list(product([1, 2, 3], [0.01, 0.5, 2.0])))
def test_four_moments_of_the_predictor_are_exact(k, spread):
    """E eta^j, j = 1 .. 4, of a polynomial of degree 2 j in normal numbers: by an exact rule.

    Given e, the first two moments of V(z) are exact, and eta's first four have no others.
    """
    given = sides(k, spread)
    mean, nodes = predictor_nodes(*given, 0.0, RULE)
    nodes = list(nodes)
    torch.testing.assert_close(sum(w.sum(0) for w, _ in nodes), torch.ones_like(mean))
    for power in range(1, 5):
        exact = by_quadrature(*given, lambda eta, power=power: eta**power, 6)
        found = sum((w * eta**power).sum(0) for w, eta in nodes)
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mean, by_quadrature(*given, lambda eta: eta, 6))


@pytest.mark.parametrize("n_rows", [1, 300, 3000])
def test_few_cells_have_many_nodes_at_once(n_rows):
    """The sum over nodes of e one by one, to rounding; an e has five nodes, each a pair."""
    given = sides(2, 0.3, n_rows)
    nodes = list(predictor_nodes(*given, 0.0, RULE)[1])
    assert len(nodes) == {1: 5, 300: 10, 3000: 55}[n_rows]
    found = sum((w * eta.cos()).sum(0) for w, eta in nodes)
    alone = (predictor_nodes(*given, 0.0, [pair])[1] for pair in RULE)
    exact = sum(w[0] * eta[0].cos() for each in alone for w, eta in each)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("spread", "off"), [(0.1, 1e-5), (0.3, 2e-5)])
def test_a_logistic_cell(spread, off):
    """E log(1 + exp(eta)): the third moment of V(z) is not exact, an error of third order in t^2.

    At sds of loadings of .1 there are 5e-6 of eleven nodes, where a predictor's sd is 1.6, and with
    30 of them 3e-9; at .3 the gamma assumption's 1.7e-5. 30 nodes a latent are within 1e-9 of 40.
    """
    given, f = sides(2, spread), torch.nn.functional.softplus
    _, nodes = predictor_nodes(*given, 0.0, RULE)
    found = sum((w * f(eta)).sum(0) for w, eta in nodes)
    exact = by_quadrature(*given, f, 30)
    assert float((found - exact).abs().max()) < off


BENDS = {
    "logistic": (torch.nn.functional.softplus, 1.0),
    "student_t": (lambda eta: torch.log1p(eta**2), 0.5),
}


@pytest.mark.parametrize("bend", list(BENDS))
@pytest.mark.parametrize("k", [1, 2])
def test_narrow_loadings_take_one_node_an_e(k, bend):
    """Sds of .02 beside the bend: cumulants beyond the fourth are of second order in t^2.

    2e5 cells may miss 1e-4 nats in all, 5e-10 a cell on average. 24 nodes are within 2e-9 of 40.
    """
    f, width = BENDS[bend]
    rows, columns, known, offset = sides(k, 0.02 * width, 60, 20)
    given = Side(rows.mean, rows.variance / 16), columns, known, offset
    rule = list(zip(*(each.tolist() for each in hermite_rule(30)), strict=True))
    _, nodes = predictor_nodes(*given, 0.0, rule, width)
    weights, etas = (torch.cat(each) for each in zip(*nodes, strict=True))
    assert len(etas) == len(rule)
    off = (weights * f(etas)).sum(0) - by_quadrature(*given, f, 24)
    assert float(off.mean().abs()) < 5e-10 and float(off.abs().max()) < 1e-8


@pytest.mark.parametrize(("scale", "width", "n"), [(1.0, 1.0, 11), (9.0, 9.0, 11), (9.0, 1.0, 55)])
def test_loadings_are_narrow_beside_the_width_of_the_bend(scale, width, n):
    """Numbers and width times 9 change nothing, numbers alone do; with five nodes an e."""
    rows, columns, known, offset = sides(2, 0.02)
    columns = Side(scale * columns.mean, scale**2 * columns.variance)
    _, nodes = predictor_nodes(rows, columns, known, scale * offset, 0.0, RULE, width)
    assert sum(len(eta) for _, eta in nodes) == n


@pytest.mark.parametrize("size", [0.0, 1e-17, 1e-9])
def test_slopes_where_loadings_are_next_to_nothing(size):
    """They are quadrature's at loadings of 0; from wherever they come there.

    Both slopes are of values that are 2e-5 nats a cell off.
    """
    rows, columns, known, offset = sides(2, 0.3)
    u = torch.cat([size * columns.mean[:, :2], columns.mean[:, 2:]], 1)

    def slope(total_of):
        at = u.clone().requires_grad_(True)
        total = total_of(rows, Side(at, columns.variance), known, offset).sum()
        return torch.autograd.grad(total, at)[0]

    def ours(*given):
        _, nodes = predictor_nodes(*given, 0.0, RULE)
        return sum((w * torch.nn.functional.softplus(eta)).sum(0) for w, eta in nodes)

    exact = slope(lambda *given: by_quadrature(*given, torch.nn.functional.softplus, 12))
    torch.testing.assert_close(slope(ours), exact, rtol=0, atol=1e-3)


def test_loadings_of_nothing_have_finite_derivatives():
    rows, columns, known, offset = sides(2, 0.3)
    u = torch.zeros_like(columns.mean).requires_grad_(True)
    _, nodes = predictor_nodes(rows, Side(u, columns.variance), known, offset, 0.0, RULE)
    total = sum((w * torch.nn.functional.softplus(eta)).sum() for w, eta in nodes)
    (slope,) = torch.autograd.grad(total, u, create_graph=True)
    (curved,) = torch.autograd.grad(slope.sum(), u)
    assert bool(slope.isfinite().all() and curved.isfinite().all())


# --- factor analysis ----------------------------------------------------------------------------


def table(likelihood, n_rows=40, n_columns=5, k=2):
    rng = np.random.default_rng(1)
    eta = rng.normal(size=(n_rows, k)) @ rng.normal(size=(k, n_columns)) + rng.normal(
        size=n_columns
    )
    draws = {
        "bernoulli": lambda: (rng.random(eta.shape) < 1 / (1 + np.exp(-eta))) * 1.0,
        "negative_binomial": lambda: rng.negative_binomial(2, 1 / (1 + np.exp(eta) / 2)) * 1.0,
        "student_t": lambda: eta + 0.5 * rng.standard_t(4, size=eta.shape),
    }
    X = draws[likelihood]()
    X[rng.random(X.shape) < 0.1] = np.nan
    return X


def problem_of(likelihood, noise, k=2, frozen=False):
    X = torch.as_tensor(table(likelihood, k=k))
    weights = torch.as_tensor(np.random.default_rng(2).uniform(0.5, 2.0, len(X)))
    model = FactorAnalysis(k, likelihood=likelihood).adapted(X, weights)
    objective = bind(model, DiagonalNormal(), DiagonalNormal(), X)
    rows = Rows(X, weights)
    return Problem(objective, Table(), rows, X, noise, None, frozen_globals=frozen)


def near_the_end(problem, log_sd=-2.0):
    """Raw factors as fits have them: sds of .14 of loadings, or others, and of .5 of latents."""
    state = problem.objective.model.initial_globals(problem.rows.X, problem.rows.weights)
    generator = torch.Generator().manual_seed(1)
    size = problem.objective.space.size
    u = problem.objective.space.unconstrain(state)
    u = u + 0.2 * torch.randn(size, generator=generator, dtype=torch.float64)
    raw_globals = torch.cat([u, torch.full_like(u, log_sd)])
    k = problem.objective.n_latents
    mean = torch.randn(len(problem.rows), k, generator=generator, dtype=torch.float64)
    return torch.cat([mean, torch.full_like(mean, -0.7)], -1), raw_globals


LIKELIHOODS = ["bernoulli", "negative_binomial", "student_t"]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_elbo_is_that_of_quadrature_over_the_latents(likelihood):
    """With holes and weights: 40 nodes a latent are within 1e-6 of 48 here."""
    ours = problem_of(likelihood, LinearPredictor(20))
    at = near_the_end(ours)
    exact = float(problem_of(likelihood, GaussHermite(40)).elbo_of(*at))
    assert float(ours.elbo_of(*at)) == pytest.approx(exact, abs=2e-3)  # what a rule may cost a fit


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_elbo_of_narrow_loadings_is_that_of_quadrature(likelihood, monkeypatch):
    """Sds of .007 of loadings, by cumulants and by nodes of V(z): each counts cells to 1e-7."""
    ours = problem_of(likelihood, LinearPredictor(40))
    at = near_the_end(ours, -5.0)
    found = float(ours.elbo_of(*at))
    monkeypatch.setattr("skavi.models._predictor_nodes._NARROW", 0.0)
    other = float(ours.elbo_of(*at))
    assert found != other
    assert found == pytest.approx(other, abs=2e-5)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_slopes_are_exact_and_curvatures_near(likelihood, frozen):
    """Against automatic derivatives of the same ELBO; curvatures are those of 25 nodes of z.

    Those of Student t cells turn within their scale, which is half of a row's spread here.
    """
    problem = problem_of(likelihood, LinearPredictor(11), frozen=frozen)
    at = near_the_end(problem)
    ours = arrow_derivatives(problem, *at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FactorAnalysis, "row_derivatives", lambda *arguments: None)
        exact = arrow_derivatives(problem, *at)
    torch.testing.assert_close(ours.g, exact.g)
    torch.testing.assert_close(ours.g_globals, exact.g_globals)
    near = 0.2 if likelihood == "student_t" else 1e-3
    for name in ("H", "C", "H_globals"):
        found, wanted = getattr(ours, name), getattr(exact, name)
        scale = float(wanted.abs().max()) if wanted.numel() else 1.0
        torch.testing.assert_close(found, wanted, rtol=0, atol=near * scale)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_gradient_alone_is_that_of_the_sum_of_rows(likelihood, frozen):
    problem = problem_of(likelihood, LinearPredictor(11), frozen=frozen)
    at = near_the_end(problem)
    of_rows, of_theta = problem.row_gradient(*at)
    here, there, value = sum_of_rows(problem, *at)
    unknowns = (here,) if frozen else (here, there)
    exact = torch.autograd.grad(value, unknowns)
    torch.testing.assert_close(of_rows, exact[0])
    if frozen:
        assert of_theta is None
    else:
        torch.testing.assert_close(of_theta, exact[1])
    assert problem.with_noise(GaussHermite(3)).row_gradient(*at) is None


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_quick_curvatures_are_near_as_well(likelihood, monkeypatch):
    """Those in log sds of theta are mended by exact slopes: else .04 to .15 of the largest off.

    Student t cells bend within their scale, as above.
    """
    monkeypatch.setattr("skavi._fit.problem._FEW_CELLS", 0)
    problem = problem_of(likelihood, LinearPredictor(11))
    at = near_the_end(problem)
    ours = arrow_derivatives(problem.for_steps(), *at)
    monkeypatch.setattr(FactorAnalysis, "row_derivatives", lambda *arguments: None)
    exact = arrow_derivatives(problem, *at)
    torch.testing.assert_close(ours.g, exact.g)
    torch.testing.assert_close(ours.g_globals, exact.g_globals)
    found, wanted = (each.H_globals.diagonal() for each in (ours, exact))
    off = (found - wanted).abs() / wanted.abs().max()
    assert float(off.max()) < (0.1 if likelihood == "student_t" else 0.015)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_curvatures_beside_narrow_loadings_take_three_nodes(likelihood, monkeypatch):
    """As with five to 10^-5 of the largest: given the latents predictors have sds of .01."""
    problem = problem_of(likelihood, LinearPredictor(11))
    at = near_the_end(problem, -5.0)
    ours = arrow_derivatives(problem, *at)
    monkeypatch.setattr("skavi.models._likelihood._THIN_NODES", 5)
    other = arrow_derivatives(problem, *at)
    for name in ("H", "C", "H_globals"):
        found, wanted = getattr(ours, name), getattr(other, name)
        assert 0 < float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("k", [3, 4])
def test_curvatures_of_several_latents_are_as_near_as_with_three_nodes_each(k, monkeypatch):
    """21 and 31 nodes in place of 27 and 81; both rules are exact to degree 5 in z."""
    problem = problem_of("bernoulli", LinearPredictor(11), k)
    at = near_the_end(problem)
    ours = arrow_derivatives(problem, *at)
    rule = [torch.as_tensor(each) for each in product_rule((3,) * k)]
    monkeypatch.setattr("skavi.models._bent_cells.nodes_of_curvature", lambda *arguments: rule)
    other = arrow_derivatives(problem, *at)
    monkeypatch.setattr(FactorAnalysis, "row_derivatives", lambda *arguments: None)
    exact = arrow_derivatives(problem, *at)
    for name in ("H", "C", "H_globals"):
        wanted = getattr(exact, name)
        left, allowed = ((getattr(each, name) - wanted).abs().max() for each in (ours, other))
        assert 0 < left <= 1.05 * allowed


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_pieces_of_rows_change_nothing(likelihood, monkeypatch):
    """Nor their gradient, for which the nodes of pieces are found anew."""
    problem = problem_of(likelihood, LinearPredictor(11))
    at = near_the_end(problem)
    raw = [each.clone().requires_grad_(True) for each in at]
    whole = torch.autograd.grad(problem.elbo_of(*raw), raw), arrow_derivatives(problem, *at)
    monkeypatch.setattr("skavi.models._bent_cells._NUMBERS", 2000)
    pieces = torch.autograd.grad(problem.elbo_of(*raw), raw), arrow_derivatives(problem, *at)
    torch.testing.assert_close(whole[0], pieces[0])
    for name in ("g", "g_globals"):
        torch.testing.assert_close(getattr(whole[1], name), getattr(pieces[1], name))


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_tables_of_one_value_lead_somewhere(noise):
    """Their loadings go to 0, where slopes of 1e9 nats had stopped Newton's method for 20 s.

    12 nodes a latent are within 1e-5 nats of 24.
    """
    X, model = np.full((40, 5), 3.0), FactorAnalysis(2, noise, likelihood="student_t")
    vi = FactorizedVI(model, noise=LinearPredictor(), random_state=0).fit(X)
    assert vi.converged_ and vi.n_iter_ < 30
    exact = FactorizedVI(model, noise=GaussHermite(12), random_state=0).fit(X).elbo_
    assert vi.elbo_ == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_several_latents_take_no_nodes_of_their_own(k):
    """300 x 20 answers with four latents took 160 s by six nodes a latent, 3 s now."""
    X = table("bernoulli", 60, 8, k)
    vi = FactorizedVI(FactorAnalysis(k, likelihood="bernoulli"), random_state=0).fit(X)
    assert (
        vi.converged_ and isinstance(vi.noise_, LinearPredictor) and isinstance(vi.solver_, Newton)
    )


def test_a_model_with_a_method_of_its_own_is_averaged_over_nodes_of_latents():
    class ByHand(FactorAnalysis):
        def predictor(self, theta, z, covariates=None):
            return 1.0 * super().predictor(theta, z, covariates)

    family = DiagonalNormal()
    models = [kind(2, likelihood="bernoulli") for kind in (FactorAnalysis, ByHand)]
    known = [each.knows_row_derivatives(family, family) for each in models]
    assert known == [True, False]


def test_the_rule_is_refined_where_five_nodes_are_too_few():
    """Answers of strong questions: predictors of rows have sds of two and more."""
    rng = np.random.default_rng(0)
    eta = 4 * rng.normal(size=(60, 2)) @ rng.normal(size=(2, 8))
    X = (rng.random(eta.shape) < 1 / (1 + np.exp(-eta))) * 1.0
    model = FactorAnalysis(2, likelihood="bernoulli", loading_scale=4.0)
    vi = FactorizedVI(model, random_state=0).fit(X)
    assert vi.converged_ and vi.noise_.n_nodes > 5
    rule = LinearPredictor(2 * vi.noise_.n_nodes)
    finer = FactorizedVI(model, noise=rule, random_state=0).fit(X)
    assert vi.elbo_ == pytest.approx(finer.elbo_, abs=0.01)


def test_two_latents_of_student_t_cells_have_the_bound_of_nodes_of_all_latents():
    """Both rules are within 2e-3 nats: 20 nodes a latent, and predictors' nodes, refined."""
    X, model = table("student_t", 40, 4), FactorAnalysis(2, likelihood="student_t")
    vi = FactorizedVI(model, random_state=0).fit(X)
    other = FactorizedVI(model, noise=GaussHermite((20, 1)), random_state=0).fit(X)
    assert isinstance(vi.noise_, LinearPredictor)
    assert vi.converged_ and other.converged_
    assert vi.elbo_ == pytest.approx(other.elbo_, abs=4e-3)


MIXED = {"normal": [1], "ordinal": [0], "categorical": [2]}


@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, "poisson", MIXED])
def test_densities_said_to_be_concave_in_the_latents_are(likelihood):
    """So that no row is searched for other optima; Student t's tails are not concave."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    X = rng.poisson(1.0, (30, 3)) * 1.0
    X = X.clip(max=1.0) if likelihood == "bernoulli" else X
    model = FactorAnalysis(2, likelihood=likelihood)
    vi = FactorizedVI(model, max_iter=1, tol=1e9, random_state=0).fit(X)
    model, X, space = vi.model_, torch.as_tensor(X), vi._fitted_model.objective.space
    curvatures = []
    for spread in (0.3, 1.0, 3.0):
        u = spread * torch.randn(space.size, generator=generator).double()
        theta, z = space.constrain(u), torch.randn(30, 2, generator=generator).double()

        def fit(z, theta=theta):
            return (model.log_terms(theta, z, X) - model.log_prior(theta, z, X)).sum()

        hessian = torch.autograd.functional.hessian(fit, z)
        blocks = hessian.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        curvatures.append(float(torch.linalg.eigvalsh(blocks).max()))
    assert (max(curvatures) < 1e-9) == model.concave_in_latents


def test_the_dispersion_is_in_the_predictor_of_counts():
    """E (x + 1/d) log(1 + d exp(eta)), log d ~ N(m, s^2): two levels and a wider predictor.

    Against 40 nodes of log d; both have 40 of eta.
    """
    cells, rng = NegativeBinomialCells(), np.random.default_rng(0)
    x = torch.as_tensor(rng.poisson(3.0, (6, 4)) * 1.0)
    mean = torch.as_tensor(rng.normal(size=(6, 4)))
    logs, sds = rng.normal(-1, 0.5, (4, 1)), rng.uniform(0.05, 0.8, (4, 1))
    noise = NoiseFactors(torch.as_tensor(logs), torch.as_tensor(sds), 40)
    nodes, weights = (each.tolist() for each in hermite_rule(40))

    def expected(levels):
        root = (torch.full_like(mean, 0.3) + levels.variance).sqrt()
        at = ((w, (mean + e * root).unsqueeze(0)) for e, w in zip(nodes, weights, strict=True))
        return cells.expected_at(x, mean, at, noise, levels)

    found, exact = (expected(f(noise)) for f in (cells.levels_along, cells.levels_at_nodes))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-11)
