"""Simulation-based calibration: calm where q is exact, alarm where it is planted to be wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import binom, chi2, kstest
from sklearn.exceptions import NotFittedError
from torch.distributions import Dirichlet, Normal

from seeds import seeds
from skavi import AmortizedVI, FactorizedVI
from skavi.diagnostics import Calibration, calibration
from skavi.families import DiagonalNormal, FullNormal, Point
from skavi.inference_functions import Polynomial
from skavi.models import HierarchicalModel, LinearModel, LocalLevel


class Conjugate(HierarchicalModel):
    """theta ~ N(0, 1) or known to be 0; z_n ~ N(0, tau^2); x_n ~ N(theta + z_n, 1)."""

    def __init__(self, tau=1.0, known=True):
        self.tau = tau
        self.known = known

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {} if self.known else {"theta": Normal(0.0, 1.0)}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), self.tau)

    def likelihood(self, z, theta):
        return Normal(z if self.known else theta["theta"] + z, 1.0)


class Narrow(FactorizedVI):
    """A planted bug: every sd of a latent is 0.8 of what it should be."""

    def posterior(self, X):
        posterior = super().posterior(X)
        return replace(posterior, sd=0.8 * posterior.sd)


class Shifted(FactorizedVI):
    """A planted bug: every mean of a latent is 0.3 sds too high."""

    def posterior(self, X):
        posterior = super().posterior(X)
        return replace(posterior, mean=posterior.mean + 0.3 * posterior.sd)


@pytest.fixture(scope="module")
def fitted():
    return FactorizedVI(Conjugate()).fit([[0.0], [1.0]])


def test_known_globals_are_calibrated_over_twenty_seeds(fitted):
    """Exact q: p-values are uniform, so one in a hundred is below 0.01."""
    reports = [calibration(fitted, 50, refit=False, random_state=seed) for seed in range(20)]
    smallest = np.array([report.p_values["z"][0] for report in reports])
    # At most two of 20 below 0.01: more has probability 0.001.
    assert binom.sf(2, 20, 0.01) < 2e-3
    assert (smallest < 0.01).sum() <= 2
    assert kstest(smallest, "uniform").pvalue > 0.01
    pearson = np.array([report.chi_square_p_values["z"][0] for report in reports])
    assert (pearson < 0.01).sum() <= 2
    pooled = np.concatenate([report.ranks["z"][:, 0] for report in reports])
    assert kstest(pooled, "uniform").pvalue > 0.01


@pytest.mark.parametrize("seed", seeds(0, 1, 2))
@pytest.mark.parametrize(
    ("wrong", "word"), [(Narrow, "here too narrow"), (Shifted, "here high")], ids=["sd", "mean"]
)
def test_a_planted_error_gives_a_clear_alarm(wrong, word, seed):
    vi = wrong(Conjugate()).fit([[0.0], [1.0]])
    report = calibration(vi, 1000, refit=False, random_state=seed)
    assert report.p_value < 1e-3
    assert word in report.advice
    assert "No miscalibration" not in report._repr_html_()


def test_refitting_finds_exact_rows_calibrated():
    report = calibration(FactorizedVI(Conjugate()), 30, n_samples=3, random_state=0)
    assert set(report.ranks) == {"z"} and report.n_unconverged == 0
    assert report.p_value > 0.01
    assert "No miscalibration seen in 30 simulations" in report.advice


@pytest.mark.slow
def test_refitting_sees_how_narrow_mean_field_is():
    """tau = 2: theta's posterior sd is sqrt(1 + tau^2) = 2.2 times mean-field's 1 / sqrt(N).

    So true theta less q's mean, over q's sd, is normal with about that sd; its ranks' spread
    follows. With tau = 0.05 the factor is 1.001, which nobody sees.
    """
    once = FactorizedVI(Conjugate(2.0, known=False), n_init=1)
    wide = calibration(once, 100, n_samples=12, random_state=0)
    assert wide.p_value < 1e-4
    expected = np.random.default_rng(0).normal(size=100_000)
    expected = np.sqrt(1 + 2.0**2) * expected
    spread = ndtr(expected).std() / np.sqrt(1 / 12)
    row = wide.summary().set_index("name").loc["theta"]
    assert row["spread"] == pytest.approx(spread, rel=0.15)  # 100 simulations: 5 % error
    tight = calibration(
        FactorizedVI(Conjugate(0.05, known=False), n_init=1), 20, n_samples=12, random_state=0
    )
    assert tight.p_value > 0.01


def test_amortized_fits_and_series_take_part():
    X = np.array([[0.0], [1.0], [-2.0]])
    vi = AmortizedVI(Conjugate(), Polynomial(1)).fit(X)
    assert calibration(vi, 200, refit=False, random_state=1).p_value > 0.01
    # A chain's mean-field factors are too narrow: neighbours that do not know of each other.
    level = LocalLevel(0.2, 1.0, initial_mean=0.0, initial_sd=1.0)
    chain = FactorizedVI(level, family=DiagonalNormal()).fit(X)
    report = calibration(chain, 200, n_samples=12, refit=False, random_state=0)
    assert report.ranks["z"].shape == (200, 1)
    assert report.summary()["spread"][0] > 1.2
    knowing = FactorizedVI(level).fit(X)
    assert calibration(knowing, 200, n_samples=12, refit=False, random_state=0).p_value > 0.01


def test_a_full_family_with_known_globals_is_calibrated_for_every_latent():
    class Sum(Conjugate):
        def n_latents(self, n_features):
            return 2

        def local_prior(self, theta):
            return Normal(torch.zeros(2), 1.0)

        def likelihood(self, z, theta):
            return Normal(z.sum(-1, keepdim=True), 0.5)

    full = FactorizedVI(Sum(), family=FullNormal()).fit([[0.0], [1.0]])
    report = calibration(full, 300, refit=False, random_state=0)
    assert report.ranks["z"].shape == (300, 2) and report.p_value > 0.01
    diagonal = FactorizedVI(Sum()).fit([[0.0], [1.0]])
    assert calibration(diagonal, 300, refit=False, random_state=0).p_value < 1e-3


def test_p_values_are_those_of_their_definitions():
    ranks = np.random.default_rng(0).uniform(size=(100, 2)) ** 1.3
    report = Calibration({"z": ranks}, 0)
    counts = np.array(
        [((ranks[:, 1] >= b / 10) & (ranks[:, 1] < (b + 1) / 10)).sum() for b in range(10)]
    )
    assert report.n_bins == 10
    np.testing.assert_array_equal(report.histogram(ranks[:, 1]), counts)
    statistic = ((counts - 10) ** 2 / 10).sum()
    assert report.chi_square_p_values["z"][1] == pytest.approx(chi2.sf(statistic, 9))
    every = np.r_[report.p_values["z"], report.chi_square_p_values["z"]]
    assert report.p_value == pytest.approx(min(1, 4 * every.min()))
    row = report.summary().iloc[1]
    assert row["mean rank"] == pytest.approx(ranks[:, 1].mean())
    assert row["spread"] == pytest.approx(ranks[:, 1].std() * np.sqrt(12))


@pytest.mark.slow
def test_globals_are_ranked_by_name_and_the_estimator_is_left_alone():
    class Named(Conjugate):
        def global_prior(self, n_features):
            return {"theta": Normal(0.0, 1.0), "weights": Dirichlet(torch.ones(3))}

        def likelihood(self, z, theta):
            return Normal(theta["theta"] + z + theta["weights"][0], 1.0)

    vi = FactorizedVI(Named(known=False), max_iter=3, n_init=1)
    report = calibration(vi, 20, n_samples=2, random_state=0)
    shapes = {name: ranks.shape for name, ranks in report.ranks.items()}
    assert shapes == {"z": (20, 1), "theta": (20,), "weights": (20, 2)}
    assert not hasattr(vi, "elbo_")
    assert report.n_unconverged > 0  # max_iter=3, and no warning of each


def test_a_seed_fixes_the_ranks(fitted):
    one, same, other = (
        calibration(fitted, 20, refit=False, random_state=s).ranks["z"] for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.filterwarnings("ignore::skavi.models.CouplingBiasWarning")
def test_what_cannot_be_simulated_is_said(fitted):
    with pytest.raises(ValueError, match=r"LinearModel has a flat prior of 'theta'.*refit=False"):
        calibration(FactorizedVI(LinearModel()), 20)
    with pytest.raises(ValueError, match="n_simulations=5 must be an integer >= 20"):
        calibration(fitted, 5)
    with pytest.raises(ValueError, match="n_samples=0 must be an integer >= 1"):
        calibration(fitted, 20, n_samples=0)
    with pytest.raises(ValueError, match="needs an estimator with a model, or a fitted one"):
        calibration(FactorizedVI(), 20)
    with pytest.raises(NotFittedError):
        calibration(FactorizedVI(Conjugate()), 20, refit=False)
    series = FactorizedVI(LocalLevel(), max_iter=50).fit([[0.0], [1.0], [0.5], [0.2]])
    with pytest.raises(ValueError, match="takes priors from the data"):
        calibration(series, 20, n_samples=4, random_state=0)
    point = FactorizedVI(Conjugate(known=False), global_family=Point())
    with pytest.raises(ValueError, match=r"q\(theta\) is a point"):
        calibration(point, 20, n_samples=4, random_state=0)
