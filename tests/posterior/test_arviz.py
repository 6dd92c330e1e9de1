"""Every kind of model's tree passes through ArviZ: summary, PSIS-LOO, comparison and plots.

ArviZ may say that k-hats are high; no warning of ours, or of an object we built, may appear.
"""

import warnings
from importlib.metadata import version

import numpy as np
import pytest
from packaging.version import parse
from scipy import stats
from sklearn.exceptions import ConvergenceWarning

from skavi import AmortizedVI, FactorizedVI
from skavi.families import FullNormal
from skavi.inference_functions import Polynomial
from skavi.models import (
    BayesianDecoder,
    FactorAnalysis,
    GaussianProcess,
    LinearModel,
    LocalLevel,
    NonlinearModel,
    RandomEffects,
    SawTimeSeries,
    TopicModel,
)
from skavi.noise import MonteCarlo
from skavi.solvers import Adam

arviz_stats = pytest.importorskip("arviz_stats", reason="arviz-stats is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::skavi.models.CouplingBiasWarning")
RNG = np.random.default_rng(0)
COLUMN = RNG.normal(2.0, 3.0, size=(12, 1))
TABLE = RNG.normal(size=(15, 1)) @ RNG.normal(size=(1, 3)) + 0.5 * RNG.normal(size=(15, 3))
COUNTS = RNG.poisson(3.0, size=(15, 3)).astype(float)
HOLES = np.where(RNG.random(TABLE.shape) < 0.2, np.nan, TABLE)
COUNTS_WITH_HOLES = np.where(RNG.random(TABLE.shape) < 0.2, np.nan, COUNTS)
SCHOOLS = np.array([[28, 15], [8, 10], [-3, 16], [7, 11], [-1, 9], [1, 11]], float)
CURVE = np.column_stack([np.linspace(0, 1, 6), RNG.normal(size=6)])

FITS = {
    "linear": (FactorizedVI(LinearModel()), COLUMN),
    "amortized": (AmortizedVI(LinearModel(), Polynomial(1)), COLUMN),
    "nonlinear": (FactorizedVI(NonlinearModel()), COLUMN),
    "series": (FactorizedVI(SawTimeSeries()), COLUMN),
    "chain": (FactorizedVI(LocalLevel()), COLUMN),
    "effects": (FactorizedVI(RandomEffects()), SCHOOLS),
    "process": (FactorizedVI(GaussianProcess()), CURVE),
    "factors": (FactorizedVI(FactorAnalysis(1), family=FullNormal()), TABLE),
    "diagonal": (FactorizedVI(FactorAnalysis(1, noise="diagonal")), HOLES),
    "student": (FactorizedVI(FactorAnalysis(1, likelihood="student_t")), HOLES[:8]),
    "bernoulli": (FactorizedVI(FactorAnalysis(1, likelihood="bernoulli")), 1.0 * (TABLE > 0)),
    "poisson": (FactorizedVI(FactorAnalysis(1, likelihood="poisson")), COUNTS_WITH_HOLES),
    "negative binomial": (
        FactorizedVI(FactorAnalysis(1, likelihood="negative_binomial")),
        COUNTS_WITH_HOLES,
    ),
    "decoder": (FactorizedVI(BayesianDecoder(1, (3,)), noise=MonteCarlo(), solver=Adam()), HOLES),
    "topics": (FactorizedVI(TopicModel(2)), COUNTS),
    "topics given a covariate": (FactorizedVI(TopicModel(2, covariates=[-1])), COUNTS),
}
N_DRAWS = 60


@pytest.fixture(scope="module", params=FITS, ids=lambda name: name.replace(" ", "-"))
def data_and_tree(request):
    estimator, X = FITS[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a tree needs no optimum
        fitted = estimator.set_params(max_iter=20, random_state=0).fit(X)
    return X, fitted.to_arviz(X, n_draws=N_DRAWS, random_state=0)


def test_a_summary_has_the_draws_means(data_and_tree):
    _, tree = data_and_tree
    summary = arviz_stats.summary(tree, kind="stats", round_to="none")
    means = np.concatenate(
        [value.mean(("chain", "draw")).values.ravel() for value in tree["posterior"].values()]
    )
    assert len(means) == len(summary)
    np.testing.assert_allclose(np.sort(summary["mean"].astype(float)), np.sort(means), rtol=1e-9)


def test_densities_of_draws_are_those_of_scipy():
    """Both on the scale where q is normal: log tau, of density p(tau) tau."""
    vi = FactorizedVI(RandomEffects()).fit(SCHOOLS)
    tree = vi.to_arviz(SCHOOLS, n_draws=20, random_state=0)
    mu, tau = (tree["posterior"][name].values[0] for name in ("mu", "tau"))
    effects = tree["posterior"]["z"].values[0, :, :, 0]
    z = (effects - mu[:, None]) / tau[:, None]
    of_rows = stats.norm(effects, SCHOOLS[:, 1]).logpdf(SCHOOLS[:, 0])
    prior = stats.norm(0, 5).logpdf(mu) + stats.halfcauchy(scale=5).logpdf(tau) + np.log(tau)
    lp = (of_rows + stats.norm.logpdf(z)).sum(1) + prior
    latents, q = vi.posterior(SCHOOLS).latents, vi.global_posterior_
    mean, sd = q.unconstrained_mean, q.unconstrained_sd
    log_q = stats.norm(latents.mean[:, 0], latents.sd[:, 0]).logpdf(z).sum(1)
    log_q += stats.norm(mean["mu"], sd["mu"]).logpdf(mu)
    log_q += stats.norm(mean["tau"], sd["tau"]).logpdf(np.log(tau))
    # Priors' scales are single precision.
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[0], of_rows, rtol=1e-9)
    np.testing.assert_allclose(tree["sample_stats"]["lp"].values[0], lp, rtol=1e-6)
    np.testing.assert_allclose(tree["sample_stats"]["log_q"].values[0], log_q, rtol=1e-9)


def test_loo_judges_every_row(data_and_tree):
    X, tree = data_and_tree
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto", UserWarning)
        loo = arviz_stats.loo(tree, pointwise=True)
    assert loo.n_data_points == len(X)
    # A row left out is never better explained than by draws that saw it.
    likelihood = tree["log_likelihood"]["x"].values[0]
    assert (loo.elpd_i.values <= np.log(np.exp(likelihood).mean(0)) + 1e-9).all()


@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")  # ArviZ's, of pandas 3.1
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_comparison_ranks_two_models_of_the_same_rows():
    """Data of noise 3 under a noise of 3 and of 30."""
    trees = {
        name: FactorizedVI(LinearModel(sigma=sigma)).fit(COLUMN).to_arviz(COLUMN, 200, 0)
        for name, sigma in {"wide": 30.0, "right": 3.0}.items()
    }
    assert list(arviz_stats.compare(trees).index) == ["right", "wide"]


@pytest.mark.skipif(
    parse(version("matplotlib")) >= parse("3.11") and parse(version("arviz-plots")) < parse("0.9"),
    reason="arviz-plots 0.8 does not import beside matplotlib 3.11, which skavi[arviz] excludes",
)
@pytest.mark.filterwarnings("ignore:The .* data looks binary")  # ArviZ's advice
def test_predictions_lie_beside_the_data(data_and_tree):
    import arviz_plots
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    _, tree = data_and_tree
    plots = arviz_plots.plot_ppc_dist(tree, backend="matplotlib", num_samples=5)
    assert len(plots.get_target("x", {}).get_lines()) >= 6  # five predictions, and the data
    plt.close("all")


def test_coefficients_have_the_names_of_covariates():
    X = np.column_stack([SCHOOLS, np.arange(6.0)])
    tree = FactorizedVI(RandomEffects(covariates=[2])).fit(X).to_arviz(X, n_draws=5, random_state=0)
    assert tree["posterior"]["coefficients"].dims == ("chain", "draw", "covariate")
    assert list(tree["posterior"].coords["covariate"].values) == ["x2"]
