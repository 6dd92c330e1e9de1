"""Noise rules: what each integrates exactly, and what it promises when it does not."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from skavi import FactorizedVI
from skavi._fit.spherical_noise import RotatedSpheres
from skavi.models import LinearModel
from skavi.noise import ClosedForm, FixedDraws, GaussHermite, MonteCarlo, QuasiMonteCarlo

DETERMINISTIC = [
    FixedDraws(8),
    QuasiMonteCarlo(16),
    GaussHermite(3),
    GaussHermite((2, 3)),
    GaussHermite((2, 3), shared=(0, 0)),
    RotatedSpheres(24, 0),
]
SAMPLED = [MonteCarlo(8), FixedDraws(8), RotatedSpheres(12, 0), RotatedSpheres(48, 0)]


def nodes_of(rule, n_globals=2, n_latents=1, n_rows=5, seed=0):
    return rule.nodes(n_globals, n_latents, n_rows, torch.Generator().manual_seed(seed))


def stacked(nodes):
    """Noise of all dimensions of row 0, (n_draws, n_latents + n_globals), and weights."""
    return torch.cat([nodes.locals_[:, 0], nodes.globals_], 1).numpy(), nodes.weights.numpy()


def normal_moment(degree):
    """E x^degree for x ~ N(0, 1)."""
    return 0.0 if degree % 2 else float(math.prod(range(1, degree, 2)))


@pytest.mark.parametrize("rule", [*DETERMINISTIC, MonteCarlo(8)], ids=repr)
def test_shapes_and_weights(rule):
    nodes = nodes_of(rule)
    n_draws = len(nodes.weights)
    assert nodes.globals_.shape == (n_draws, 2)
    assert nodes.locals_.shape == (n_draws, 1 if rule.deterministic else 5, 1)
    assert float(nodes.weights.sum()) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("rule", DETERMINISTIC, ids=repr)
def test_deterministic_rules_ignore_the_generator(rule):
    assert rule.deterministic
    one, two = nodes_of(rule, seed=0), nodes_of(rule, seed=1)
    assert torch.equal(one.locals_, two.locals_)
    assert torch.equal(one.globals_, two.globals_)


def test_monte_carlo_draws_afresh_and_a_row_at_a_time():
    rule, generator = MonteCarlo(4), torch.Generator().manual_seed(0)
    one, two = (rule.nodes(2, 1, 5, generator) for _ in range(2))
    assert not rule.deterministic
    assert not torch.equal(one.globals_, two.globals_)
    assert len(one.locals_.unique()) == one.locals_.numel()


@pytest.mark.parametrize("rule", [FixedDraws(8), QuasiMonteCarlo(16)], ids=repr)
def test_another_seed_gives_other_nodes(rule):
    other = type(rule)(rule.n_draws, seed=1)
    assert not torch.equal(nodes_of(rule).globals_, nodes_of(other).globals_)


@pytest.mark.parametrize("n_nodes", [1, 2, 3, 5, 8])
def test_gauss_hermite_is_exact_to_degree_2n_minus_1_and_no_further(n_nodes):
    noise, weights = stacked(nodes_of(GaussHermite(n_nodes), n_globals=0))
    for degree in range(2 * n_nodes):
        scale = max(normal_moment(degree), 1.0)
        error = abs(weights @ noise[:, 0] ** degree - normal_moment(degree))
        assert error < 1e-10 * scale  # rounding
    beyond = weights @ noise[:, 0] ** (2 * n_nodes)
    # The rule's error on x^2n is the squared norm of the Hermite polynomial, n!.
    assert normal_moment(2 * n_nodes) - beyond == pytest.approx(math.factorial(n_nodes), rel=1e-8)


def test_gauss_hermite_is_exact_for_products_over_dimensions():
    noise, weights = stacked(nodes_of(GaussHermite((2, 3)), n_globals=2))
    assert len(weights) == 2 * 3 * 3
    value = weights @ (noise[:, 0] ** 2 * noise[:, 1] ** 4 * noise[:, 2] ** 2)
    assert value == pytest.approx(3.0, rel=1e-12)
    assert weights @ noise[:, 0] ** 4 == pytest.approx(1.0, rel=1e-12)  # two nodes: 3 is missed


@pytest.mark.parametrize("n_draws", [16, 256])
@pytest.mark.parametrize("kind", [QuasiMonteCarlo, RotatedSpheres])
def test_rules_with_exact_moments_are_exact_for_quadratics_and_cubics(kind, n_draws):
    noise, weights = stacked(nodes_of(kind(n_draws, 0), n_globals=3, n_latents=2))
    np.testing.assert_allclose(weights @ noise, 0, atol=1e-13)  # rounding
    np.testing.assert_allclose(noise.T @ (weights[:, None] * noise), np.eye(5), atol=1e-12)
    cubes = np.einsum("d,di,dj,dk->ijk", weights, noise, noise, noise)
    np.testing.assert_allclose(cubes, 0, atol=1e-12)


def test_quasi_monte_carlo_beats_draws_on_a_smooth_integral():
    """E exp(sum u / 3) = exp(dimension / 18); root mean square error over seeds."""

    def error(rule, dimension=3):
        noise, weights = stacked(nodes_of(rule, n_globals=dimension - 1))
        return weights @ np.exp(noise.sum(1) / 3) - math.exp(dimension / 18)

    sobol = np.std([error(QuasiMonteCarlo(256, seed=s)) for s in range(20)])
    draws = np.std([error(FixedDraws(256, seed=s)) for s in range(20)])
    assert sobol < draws / 10


@pytest.mark.parametrize("dimension", [1, 2, 7])
def test_spherical_noise_integrate_radii_and_are_as_long_as_they_say(dimension):
    """|u|^2 is chi-square: E |u|^6 = d (d + 2) (d + 4), which two radii get and four do too."""
    for n_draws in (4 * dimension, 16 * dimension):
        noise, weights = stacked(nodes_of(RotatedSpheres(n_draws, 3), dimension - 1))
        assert len(weights) == n_draws
        sixth = weights @ (noise**2).sum(1) ** 3
        assert sixth == pytest.approx(dimension * (dimension + 2) * (dimension + 4), rel=1e-12)


@pytest.mark.parametrize("rule", SAMPLED, ids=repr)
def test_expectations_are_unbiased_over_seeds(rule):
    """z score of E cos(u_0 + u_1) = exp(-1), over 2,000 generators or seeds."""
    values = []
    for seed in range(2000):
        seeded = rule if isinstance(rule, MonteCarlo) else type(rule)(rule.n_draws, seed=seed)
        noise, weights = stacked(nodes_of(seeded, n_globals=1, seed=seed))
        values.append(weights @ np.cos(noise.sum(1)))
    z = (np.mean(values) - math.exp(-1)) / stats.sem(values)
    assert abs(z) < 4


@pytest.mark.parametrize("rule", DETERMINISTIC[:-1], ids=repr)  # no fit climbs on the last
def test_refined_rules_are_finer(rule):
    coarse = len(nodes_of(rule).weights)
    finer = rule.refined()
    assert finer
    assert all(type(r) is type(rule) and len(nodes_of(r).weights) > coarse for r in finer)


def test_gauss_hermite_refines_latents_and_globals_apart():
    assert [r.n_nodes for r in GaussHermite((2, 3)).refined()] == [(4, 3), (2, 5)]


def test_closed_form_needs_no_nodes():
    assert nodes_of(ClosedForm()) is None
    assert ClosedForm().refined() == []
    assert MonteCarlo().refined() == []


def test_rules_without_globals():
    for rule in [*DETERMINISTIC, MonteCarlo(8)]:
        assert nodes_of(rule, n_globals=0).globals_.shape[1] == 0


def test_too_many_dimensions_name_the_way_out():
    with pytest.raises(ValueError, match=r"needs .* nodes, more than 200000: use fewer nodes"):
        nodes_of(GaussHermite(3), n_globals=12)
    with pytest.raises(ValueError, match=r"reaches 21201 dimensions.*use noise=MonteCarlo\(\)"):
        nodes_of(QuasiMonteCarlo(4), n_globals=21201)


def test_single_precision_draws_are_standard_normal_too():
    """Mean, variance and fourth moment of 3e5 draws, within five of their standard errors."""
    rule = MonteCarlo(3).in_single()
    nodes = rule.nodes(0, 100, 1000, torch.Generator().manual_seed(0))
    assert nodes.locals_.dtype == nodes.weights.dtype == torch.float32
    draws = nodes.locals_.double().flatten()
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 96.0)):
        error = abs(float((draws**power).mean()) - moment)
        assert error < 5 * (variance / len(draws)) ** 0.5
    assert GaussHermite(3).in_single().get_params() == GaussHermite(3).get_params()


def test_shared_nodes_are_equal_and_few():
    rule = GaussHermite((2, 3), shared=(0, 1, 0))
    nodes = rule.nodes(3, 1, 5, None)
    assert len(nodes.weights) == rule.count_nodes(3, 1) == 2 * 3 * 3
    assert torch.equal(nodes.globals_[:, 0], nodes.globals_[:, 2])
    products = nodes.weights @ (nodes.globals_[:, 0] * nodes.globals_[:, 1])
    assert float(products) == pytest.approx(0.0, abs=1e-15)
    assert all(finer.shared == (0, 1, 0) for finer in rule.refined())
    assert rule.nodes(0, 1, 5, None).globals_.shape == (2, 0)  # a q(theta) that is a point


def test_three_nodes_in_shared_dimensions_are_few_together():
    rule, product = GaussHermite((2, 3), shared=(0, 1, 2, 3)), GaussHermite((2, 3))
    nodes = rule.nodes(4, 1, 5, None)
    assert len(nodes.weights) == rule.count_nodes(4, 1) == 2 * 31
    assert product.count_nodes(4, 1) == 2 * 81
    fourth = nodes.weights @ (nodes.globals_[:, 0] ** 2 * nodes.globals_[:, 3] ** 2)
    assert float(fourth) == pytest.approx(1.0, abs=1e-13)
    assert [finer.count_nodes(4, 1) for finer in rule.refined()] == [4 * 31, 2 * 4**4]


@pytest.mark.parametrize("shared", [(0, 2), (-1, 0), "ab", (0.5, 1)])
def test_shared_counts_dimensions_without_a_gap(shared):
    with pytest.raises((ValueError, TypeError), match="shared"):
        GaussHermite(3, shared=shared).check()


def test_nodes_shared_by_other_globals_are_refused():
    with pytest.raises(ValueError, match="between 3 globals, but this model has 1"):
        FactorizedVI(LinearModel(), noise=GaussHermite(3, shared=(0, 1, 0))).fit([[0.0], [1.0]])
