"""Factors of a chain are one normal of all rows: against torch.distributions."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from skavi import FactorizedVI
from skavi.families import Chain, DiagonalNormal
from skavi.models import LinearModel, LocalLevel

N_ROWS = 5


def chain(n_latents, n_rows=N_ROWS):
    """Return random factors; the first row's link is 0, as at any optimum."""
    generator, family = torch.Generator().manual_seed(0), Chain()
    shape = n_rows, family.n_parameters(n_latents)
    raw = torch.randn(shape, generator=generator, dtype=torch.float64)
    raw[0, -(n_latents**2) :] = 0.0
    return raw, family.factors(raw, n_latents)


def joint_covariance(factors):
    """The covariance of all rows: moved by unit noise."""
    n, k = factors.mean.shape
    unit = torch.eye(n * k, dtype=torch.float64).reshape(n * k, n, k)
    root = (factors.joint_draw(unit) - factors.mean).reshape(n * k, n * k)
    return root.mT @ root


@pytest.mark.parametrize("n_latents", [1, 2, 3])
def test_entropy_density_and_moments_are_those_of_one_normal(n_latents):
    """One factorisation apart: rounding."""
    _, factors = chain(n_latents)
    covariance = joint_covariance(factors)
    normal = MultivariateNormal(factors.mean.reshape(-1), covariance)
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(factors.entropy().sum(), normal.entropy(), **close)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4, N_ROWS, n_latents, generator=generator, dtype=torch.float64)
    density = normal.log_prob(factors.joint_draw(noise).reshape(4, -1))
    torch.testing.assert_close(factors.joint_log_prob(noise).sum(-1), density, **close)
    blocks = covariance.reshape(N_ROWS, n_latents, N_ROWS, n_latents)
    for n in range(N_ROWS):
        torch.testing.assert_close(factors.covariance()[n], blocks[n, :, n], **close)
        if n:
            pair = factors.neighbour_covariance()[n]
            torch.testing.assert_close(pair, blocks[n, :, n - 1], **close)
    # Rows two apart are independent given the one between.
    precision = torch.linalg.inv(covariance).reshape(blocks.shape)
    assert precision[0, :, 2:].abs().max() < 1e-8 * precision.abs().max()


@pytest.mark.parametrize("n_latents", [1, 2])
def test_each_term_sees_the_joint_distribution_of_its_two_rows(n_latents):
    _, factors = chain(n_latents)
    covariance = joint_covariance(factors).reshape(N_ROWS, n_latents, N_ROWS, n_latents)
    unit = torch.eye(N_ROWS * n_latents, dtype=torch.float64).reshape(-1, N_ROWS, n_latents)
    served = torch.zeros(N_ROWS)
    for draws, rows in factors.term_draws(unit):
        moved = draws - factors.mean
        served += rows
        for n in rows.nonzero()[:, 0].tolist():
            pair = moved[:, max(n - 1, 0) : n + 1].flatten(1)
            wanted = covariance[max(n - 1, 0) : n + 1, :, max(n - 1, 0) : n + 1]
            torch.testing.assert_close(
                pair.mT @ pair, wanted.reshape(pair.shape[1], -1), rtol=1e-10, atol=1e-12
            )
    assert (served == 1).all()


@pytest.mark.parametrize("n_latents", [1, 2])
def test_a_row_alone_is_drawn_given_its_neighbours(n_latents):
    _, factors = chain(n_latents)
    precision = torch.linalg.inv(joint_covariance(factors))
    for n in range(N_ROWS):
        at = slice(n * n_latents, (n + 1) * n_latents)
        noise = torch.zeros(n_latents, N_ROWS, n_latents, dtype=torch.float64)
        noise[:, n] = torch.eye(n_latents)
        moved = torch.stack([factors.joint_draw(factors.alone(e)) for e in noise]) - factors.mean
        others = [row for row in range(N_ROWS) if row != n]
        assert moved[:, others].abs().max() < 1e-10
        given = torch.linalg.inv(precision[at, at])
        torch.testing.assert_close(moved[:, n].mT @ moved[:, n], given, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n_latents", [1, 3])
def test_raw_undoes_factors_and_takes_other_families(n_latents):
    raw, factors = chain(n_latents)
    torch.testing.assert_close(Chain().raw(factors), raw, rtol=1e-9, atol=1e-9)
    diagonal = DiagonalNormal().factors(DiagonalNormal().raw(factors), n_latents)
    again = Chain().factors(Chain().raw(diagonal), n_latents)
    torch.testing.assert_close(again.covariance(), diagonal.covariance())
    assert not again.link.any()


def test_chains_are_refused_where_rows_are_not_in_a_chain():
    X = [[0.0], [1.0], [5.0]]
    with pytest.raises(ValueError, match=r"family=Chain\(\).*LinearModel are not in a chain"):
        FactorizedVI(LinearModel(), family=Chain()).fit(X)
    with pytest.raises(ValueError, match=r"global_family=Chain\(\) is a family of rows' latents"):
        FactorizedVI(LocalLevel(), global_family=Chain()).fit(X)
