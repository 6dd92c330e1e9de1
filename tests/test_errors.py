"""Bad input says what is wrong and loses no fit; odd but legal input is fitted soundly."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from torch.distributions import Multinomial, Normal, Poisson

from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import MLP, Constant, Polynomial
from skavi.models import (
    FactorAnalysis,
    HierarchicalModel,
    LatentVariableModel,
    LinearModel,
    MarkovModel,
    RandomEffects,
    SawTimeSeries,
)
from skavi.noise import ClosedForm, FixedDraws, GaussHermite, MonteCarlo, QuasiMonteCarlo
from skavi.solvers import LBFGS, Adam, CoordinateAscent, Newton

X = np.random.default_rng(0).normal(size=(20, 3))
COLUMN = X[:, :1]
ESTIMATORS = [
    FactorizedVI(FactorAnalysis(2), random_state=0),
    AmortizedVI(FactorAnalysis(2), Polynomial(), random_state=0),
]

each_estimator = pytest.mark.parametrize("vi", ESTIMATORS, ids=lambda vi: type(vi).__name__)


def with_cell(value):
    changed = X.copy()
    changed[3, 1] = value
    return changed


# What is wrong with the data


@each_estimator
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (with_cell(np.inf), "Input X contains infinity"),
        (pd.DataFrame({"a": ["x", "y"], "b": [1.0, 2.0]}), "could not convert string to float"),
        (X[:0], r"0 sample\(s\) .* minimum of 1 is required"),
        (X[:, :0], r"0 feature\(s\) .* minimum of 1 is required"),
        (X[:, 0], "Expected 2D array, got 1D array"),
        (X + 1j, "Complex data not supported"),
    ],
    ids=["inf", "text", "no rows", "no columns", "one dimension", "complex"],
)
def test_unusable_data(vi, bad, message):
    with pytest.raises(ValueError, match=message):
        clone(vi).fit(bad)


@each_estimator
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.r_[-1, np.ones(19)], "Negative values in data passed to `sample_weight`"),
        (np.zeros(20), "at least one non-zero number"),
        (np.ones(3), r"sample_weight.shape == \(3,\), expected \(20,\)"),
        (np.full(20, np.nan), "Input sample_weight contains NaN"),
    ],
    ids=["negative", "all zero", "length", "NaN"],
)
def test_unusable_weights(vi, weights, message):
    with pytest.raises(ValueError, match=message):
        clone(vi).fit(X, sample_weight=weights)


def test_standard_errors_must_be_positive_in_fit_and_in_transform():
    message = r"2 standard errors that are not positive \(first at row 1, column 1\)"
    with pytest.raises(ValueError, match=message):
        FactorizedVI(RandomEffects()).fit([[1, 1.0], [2, 0.0], [3, -1.0]])
    vi = FactorizedVI(RandomEffects(), noise=GaussHermite(8)).fit([[1, 1.0], [2, 1.0], [3, 2.0]])
    with pytest.raises(ValueError, match=r"1 standard errors that are not positive"):
        vi.transform([[1, 0.0]])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LinearModel(), "X has 3 features, but LinearModel is a model of 1 column"),
        (RandomEffects(), "X has 3 features, but RandomEffects needs 2: estimate, standard error"),
    ],
    ids=repr,
)
def test_models_name_the_columns_they_need(model, message):
    with pytest.raises(ValueError, match=message):
        FactorizedVI(model).fit(X)


# What is wrong with a model


class Broken(HierarchicalModel):
    """A model with one fault at a time."""

    def __init__(self, fault=None):
        self.fault = fault

    def n_latents(self, n_features):
        return {"fewer than none": -1, "half a latent": 1.5}.get(self.fault, 1)

    def global_prior(self, n_features):
        if self.fault == "prior is no dict":
            return [Normal(0.0, 1.0)]
        return {"mu": 1.0 if self.fault == "prior is a number" else Normal(0.0, 10.0)}

    def local_prior(self, theta):
        if self.fault == "no prior":
            return None
        if self.fault == "unknown name in the prior":
            return Normal(torch.zeros(1), theta["scale"])
        return Normal(torch.zeros(2 if self.fault == "prior's event" else 1), 1.0)

    def likelihood(self, z, theta):
        if self.fault == "likelihood is a tensor":
            return z
        if self.fault == "unknown name in the likelihood":
            return Normal(z, theta["sigma"])
        if self.fault == "likelihood's event":
            return Normal(theta["mu"] + z, 1.0)
        location = (theta["mu"] + z).expand(-1, 3)
        if self.fault == "support":
            return Poisson(location.exp())
        late = torch.arange(len(z)).unsqueeze(-1) >= 2
        if self.fault == "parameters":
            return Normal(location, torch.where(late, -1.0, 1.0))
        if self.fault == "not finite":
            return Normal(torch.where(late, torch.nan, location), 1.0, validate_args=False)
        return Normal(location, 1.0)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("fewer than none", ValueError, r"n_latents\(3\) returned -1: it must be an integer >= 0"),
        ("half a latent", ValueError, r"n_latents\(3\) returned 1.5"),
        ("prior is no dict", TypeError, "global_prior must return a dict .* got list"),
        ("no prior", TypeError, "local_prior returned None: it must return one of"),
        ("likelihood is a tensor", TypeError, "likelihood returned a Tensor: it must return one"),
        ("prior is a number", TypeError, "'mu' is a float"),
        ("unknown name in the prior", ValueError, "no global 'scale'; global_prior names: 'mu'"),
        ("unknown name in the likelihood", ValueError, "no global 'sigma'"),
        ("prior's event", ValueError, r"local_prior has shape \(2,\) .* n_latents=1"),
        ("likelihood's event", ValueError, r"likelihood has shape \(3, 1\) .* n_features=3"),
        ("support", ValueError, r"values \(first at row 0, column \d\) outside the support of"),
        ("parameters", ValueError, r"not valid at the start \(first at row 2\): .*scale"),
        ("not finite", ValueError, r"log joint is not finite at the start \(first at row 2\)"),
    ],
)
def test_a_faulty_model_is_told_its_fault(fault, kind, message):
    with pytest.raises(kind, match=message):
        FactorizedVI(Broken(fault)).fit(X)


def test_the_same_model_without_a_fault_fits():
    assert FactorizedVI(Broken()).fit(X).converged_


class Joint(LatentVariableModel):
    """A model known by its log joint, times `factor`."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {}

    def log_joint(self, theta, z, X):
        if self.factor is None:
            return 0.0
        factor = torch.as_tensor(self.factor).to(X)
        return factor * -0.5 * (((X - z) ** 2).sum() + (z**2).sum())


class Chain(MarkovModel):
    """A chain whose observations are counts."""

    def __init__(self, fault=None):
        self.fault = fault

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {}

    def initial_prior(self, theta):
        return None if self.fault == "initial_prior" else Normal(torch.zeros(1), 1.0)

    def transition(self, z_previous, theta):
        return Normal(z_previous.expand(-1, 2) if self.fault == "transition" else z_previous, 1.0)

    def likelihood(self, z, theta):
        return Poisson(z.exp())


@pytest.mark.parametrize("name", ["a", "initial"])
def test_a_saw_needs_finite_numbers(name):
    with pytest.raises(ValueError, match=rf"SawTimeSeries\({name}=nan\).* finite"):
        FactorizedVI(SawTimeSeries(**{name: float("nan")})).fit([[0.0], [1.0], [3.0]])


@pytest.mark.parametrize("solver", [None, LBFGS()])
def test_scales_of_one_number_may_be_lists(solver):
    """The same model: only sums may be taken in another order."""
    X = [[0.2, -0.5, -0.4], [-2.4, 1.8, 1.1], [-0.3, 0.8, 0.3]]
    number, listed = (
        FactorizedVI(FactorAnalysis(1, mean_scale=s, noise_scale=s), solver=solver).fit(X)
        for s in (1.0, [1.0])
    )
    assert number.elbo_ == pytest.approx(listed.elbo_, rel=1e-12)


def test_faults_of_a_chain():
    counts = [[1.0], [0.0], [3.0]]
    with pytest.raises(TypeError, match=r"Chain\.initial_prior returned None"):
        FactorizedVI(Chain("initial_prior")).fit(counts)
    with pytest.raises(ValueError, match=r"Chain.transition has shape \(2, 2\) .* n_latents=1"):
        FactorizedVI(Chain("transition")).fit(counts)
    with pytest.raises(ValueError, match=r"1 values \(first at row 1, column 0\) outside"):
        FactorizedVI(Chain()).fit([[1.0], [-1.0], [3.0]])
    assert FactorizedVI(Chain()).fit(counts).converged_


def test_faults_of_a_bare_log_joint():
    with pytest.raises(TypeError, match="Joint's log density is a float: log_joint must return"):
        FactorizedVI(Joint(None)).fit(X)
    with pytest.raises(ValueError, match=r"not finite at the start \(for all rows together\)"):
        FactorizedVI(Joint(np.inf)).fit(X)
    with pytest.raises(ValueError, match=r"log density has shape \(2,\) for 20 rows"):
        FactorizedVI(Joint([1.0, 1.0])).fit(X)
    with pytest.raises(ValueError, match="sample_weight needs a term a row, but Joint"):
        FactorizedVI(Joint()).fit(X, sample_weight=np.arange(20))
    vi = FactorizedVI(Joint()).fit(X)
    with pytest.raises(ValueError, match="its ELBO has no term a row"):
        vi.score_samples(X)


class Votes(HierarchicalModel):
    """Counts with a density that cannot be batched over draws."""

    def n_latents(self, n_features):
        return n_features

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return Normal(torch.zeros(3), 1.0)

    def likelihood(self, z, theta):
        raise NotImplementedError("see log_likelihood")

    def log_likelihood(self, theta, z, X):
        return Multinomial(10, logits=z, validate_args=False).log_prob(X)


def test_a_density_that_cannot_be_batched_is_looped_over_in_fit_and_after():
    votes = np.random.default_rng(0).multinomial(10, [0.2, 0.3, 0.5], size=4).astype(float)
    vi = FactorizedVI(Votes(), noise=GaussHermite(4)).fit(votes)
    assert vi.score(votes) == pytest.approx(vi.elbo_ / 4, abs=1e-6)  # no globals: the same ELBO
    Z = vi.transform(votes)
    assert (Z[np.arange(4), votes.argmax(1)] >= Z.max(1) - 1e-6).all()  # ties among the votes


# What is wrong with a component: said at fit, never in __init__


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"noise": MonteCarlo(0)}, ValueError, r"MonteCarlo\(n_draws=0\): n_draws must be >= 1"),
        ({"noise": MonteCarlo("a")}, TypeError, "n_draws must be an integer, got str"),
        ({"noise": MonteCarlo(True)}, TypeError, "n_draws must be an integer, got bool"),
        ({"noise": FixedDraws(seed=-1)}, ValueError, "seed must be >= 0"),
        ({"noise": QuasiMonteCarlo(1)}, ValueError, "n_draws must be >= 2"),
        ({"noise": GaussHermite(0)}, ValueError, "n_nodes must be >= 1"),
        ({"noise": GaussHermite((1, 2, 3))}, ValueError, "an int or two of them"),
        ({"noise": GaussHermite(2.5)}, TypeError, "need an int, or two of them"),
        ({"noise": ClosedForm()}, ValueError, "LinearModel has no closed form"),
        ({"solver": LBFGS(0)}, ValueError, r"LBFGS\(memory=0\): memory must be >= 1"),
        ({"solver": Adam(learning_rate=-1)}, ValueError, "learning_rate must be positive"),
        ({"solver": Adam(batch_size=0)}, ValueError, "batch_size must be >= 1"),
        ({"solver": CoordinateAscent(-1)}, ValueError, "memory must be >= 0"),
        ({"solver": CoordinateAscent()}, ValueError, "which LinearModel does not offer"),
        ({"model": LinearModel(tau="a")}, TypeError, "tau must be a number, got str"),
        ({"model": LinearModel(tau=np.nan)}, ValueError, "tau must be finite"),
        ({"model": LinearModel(sigma=0)}, ValueError, "sigma must be positive and finite"),
        ({"model": FactorAnalysis(0)}, ValueError, "n_components must be >= 1"),
        ({"model": FactorAnalysis(1.5)}, TypeError, "n_components must be an integer"),
        ({"model": FactorAnalysis(1, "x")}, ValueError, 'must be "isotropic" or "diagonal"'),
        ({"model": FactorAnalysis(1, mean_loc="a")}, TypeError, "mean_loc must be None, a number"),
        ({"model": FactorAnalysis(1, mean_loc=np.inf)}, ValueError, "mean_loc must be finite"),
        ({"model": FactorAnalysis(1, mean_loc=1e160)}, ValueError, "whose squares are finite"),
        ({"model": FactorAnalysis(1, mean_scale=1e-160)}, ValueError, "neither 0 nor infinite"),
        ({"model": FactorAnalysis(1, mean_scale=[1, 2])}, ValueError, "2 numbers, but X has 1 fea"),
        ({"model": FactorAnalysis(1, noise_scale=np.inf)}, ValueError, "noise_scale must be posit"),
        ({"model": FactorAnalysis(1, noise_scale=[[1]])}, ValueError, "an array of one dimension"),
        ({"model": FactorAnalysis(1, loading_scale=-1)}, ValueError, "loading_scale must be pos"),
        ({"model": RandomEffects(tau_scale="a")}, TypeError, "tau_scale must be a number, got str"),
        ({"model": RandomEffects(tau_prior="x")}, ValueError, "tau_prior must be one of"),
        ({"model": LinearModel}, ValueError, "The 'model' parameter of FactorizedVI must be"),
        ({"noise": "mc"}, ValueError, "The 'noise' parameter"),
        ({"solver": 1}, ValueError, "The 'solver' parameter"),
        ({"family": "full"}, ValueError, "The 'family' parameter"),
        ({"max_iter": 0}, ValueError, "The 'max_iter' parameter"),
        ({"tol": 0.0}, ValueError, "The 'tol' parameter"),
        ({"output": "sd"}, ValueError, "The 'output' parameter"),
        ({"init": 3}, ValueError, "The 'init' parameter"),
        ({"device": "xpu9"}, ValueError, "device='xpu9' cannot be used here"),
        ({"device": ""}, ValueError, "device='' cannot be used here"),
        ({"random_state": "a"}, ValueError, "The 'random_state' parameter"),
    ],
    ids=str,
)
def test_a_bad_argument_is_named_at_fit(arguments, kind, message):
    vi = FactorizedVI(**{"model": LinearModel(), **arguments})
    with pytest.raises(kind, match=message):
        vi.fit(COLUMN)


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (Polynomial(-1), ValueError, r"Polynomial\(degree=-1\): degree must be >= 0"),
        (Polynomial(1.5), TypeError, "degree must be an integer, got float"),
        (Polynomial(context=(1,)), ValueError, "context must be None or two integers >= 0"),
        (Constant(context=3), ValueError, "context must be None or two integers >= 0"),
        (MLP((0,)), ValueError, "hidden_layer_sizes must be integers >= 1"),
        (MLP("wide"), ValueError, "hidden_layer_sizes must be integers >= 1"),
        (MLP((8,), "relux"), ValueError, "activation must be one of"),
        ("mlp", ValueError, "The 'inference_function' parameter of AmortizedVI must be"),
    ],
    ids=repr,
)
def test_a_bad_inference_function_is_named_at_fit(function, kind, message):
    with pytest.raises(kind, match=message):
        AmortizedVI(LinearModel(), function).fit(COLUMN)


def test_the_prior_scales_of_factor_analysis_fit_its_columns():
    with pytest.raises(ValueError, match="loading_scale has 2 numbers, but X has 3 features"):
        FactorizedVI(FactorAnalysis(1, "diagonal", loading_scale=[1.0, 2.0])).fit(X)
    with pytest.raises(ValueError, match="has one noise variance, but noise_scale has 3 numbers"):
        FactorizedVI(FactorAnalysis(1, noise_scale=[1.0, 2.0, 3.0])).fit(X)


def test_a_module_that_cannot_read_the_rows_is_named():
    with torch.random.fork_rng():  # torch draws their weights
        wide, three = torch.nn.Linear(3, 2), torch.nn.Linear(1, 3)
    message = r"inference_function=Linear\(.* cannot read rows of 1 inputs"
    with pytest.raises(ValueError, match=message):
        AmortizedVI(LinearModel(), wide).fit(COLUMN)
    with pytest.raises(ValueError, match=r"to shape \(2, 3\), but the factors need \(2, 2\)"):
        AmortizedVI(LinearModel(), three).fit(COLUMN)


@pytest.mark.filterwarnings("ignore:Some rows' local problems did not converge")
def test_rows_beyond_all_numbers_are_refused_not_scored_as_nan():
    vi = FactorizedVI(RandomEffects(), noise=GaussHermite(8)).fit([[1, 1.0], [2, 1.0], [3, 2.0]])
    with pytest.raises(FloatingPointError, match=r"of 1 rows \(first at row 1\) is not finite"):
        vi.score([[1, 1.0], [2, 1e-300]])


@pytest.mark.parametrize("solver", [LBFGS(), Newton(), CoordinateAscent()], ids=repr)
def test_deterministic_solvers_refuse_fresh_draws(solver):
    message = rf"{type(solver).__name__} needs deterministic noise, but noise=MonteCarlo\(\)"
    with pytest.raises(ValueError, match=message):
        FactorizedVI(FactorAnalysis(2), noise=MonteCarlo(), solver=solver).fit(X)


def test_solvers_name_the_inference_functions_they_can_fit():
    with pytest.raises(ValueError, match=r"up to 2000 parameters, but MLP has"):
        AmortizedVI(LinearModel(), MLP((64, 64)), solver=Newton()).fit(COLUMN)
    with pytest.raises(ValueError, match="does not offer for Polynomial"):
        AmortizedVI(FactorAnalysis(1), Polynomial(), solver=CoordinateAscent()).fit(X)


# What is wrong with a call


@each_estimator
@pytest.mark.parametrize(
    "method", ["transform", "posterior", "score_samples", "score", "inverse_transform"]
)
def test_calls_before_fit(vi, method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(clone(vi), method)(X)


@each_estimator
def test_calls_before_fit_without_data(vi):
    for method in ("sample", "get_feature_names_out"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(clone(vi), method)()


@each_estimator
def test_wrong_shapes_after_fit(vi):
    fitted = clone(vi).fit(X)
    with pytest.raises(ValueError, match=r"X has 2 features, but .* is expecting 3 features"):
        fitted.transform(X[:, :2])
    with pytest.raises(ValueError, match=r"Z has shape \(2, 3\), but the model has 2 latents"):
        fitted.inverse_transform(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="n_samples=0 must be an integer >= 1"):
        fitted.sample(0)


@each_estimator
def test_unusable_starts(vi):
    other = FactorizedVI(FactorAnalysis(1)).fit(X)
    for init, message in [
        (FactorizedVI(), "init must be a fitted estimator"),
        (PCA().fit(X), "init must be a fitted estimator"),
        (other, "init starts from a fit of a model of other latents or globals: 1 latents"),
        (
            FactorizedVI(FactorAnalysis(2)).fit(X[:, :2]),
            "starts from a fit on 2 features, but X has 3",
        ),
    ]:
        with pytest.raises((ValueError, NotFittedError), match=message):
            clone(vi).set_params(init=init).fit(X)


# Nothing is lost


@each_estimator
@pytest.mark.parametrize(
    "change", [{"model": Broken("not finite")}, {"max_iter": 0}, {"noise": MonteCarlo(0)}], ids=str
)
def test_a_failed_fit_leaves_the_fitted_one_as_it_was(vi, change):
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    fitted = clone(vi).fit(frame)
    before, attributes = fitted.transform(frame), set(vars(fitted))
    elbo, arguments = fitted.elbo_, fitted.get_params(deep=False)
    for bad in (
        frame.rename(columns=str.upper),
        frame.iloc[:, :2].replace(0, 1),
        with_cell(np.inf),
    ):
        with pytest.raises((ValueError, TypeError)):
            fitted.set_params(**change).fit(bad)
    fitted.set_params(**{name: arguments[name] for name in change})
    assert np.array_equal(fitted.transform(frame), before)
    assert (set(vars(fitted)), fitted.elbo_) == (attributes, elbo)
    assert list(fitted.feature_names_in_) == ["a", "b", "c"]


# Odd but legal


def read_only(data):
    data = data.copy()
    data.flags.writeable = False
    return data


LEGAL = {
    "one row": X[:1],
    "two rows": X[:2],
    "one feature": COLUMN,
    "one cell": X[:1, :1],
    "a constant column": np.column_stack([X, np.full(20, 7.0)]),
    "a zero column": np.column_stack([X, np.zeros(20)]),
    "a duplicated column": np.column_stack([X, X[:, 0]]),
    "all constant": np.full((20, 3), 3.0),
    "all zero": np.zeros((20, 3)),
    "equal rows": np.repeat(X[:1], 20, axis=0),
    "scaled by 1e-6": 1e-6 * X,
    "scaled by 1e6": 1e6 * X,
    "mixed scales": X * [1e-6, 1.0, 1e6],
    "far from zero": X + 1e6,
    "float32": X.astype(np.float32),
    "integers": (10 * X).astype(int),
    "booleans": X > 0,
    "read-only": read_only(X),
    "columns first": np.asfortranarray(X),
    "strided": np.repeat(X, 2, axis=1)[::-1, ::2],
    "big-endian": X.astype(">f8"),
}
MODELS = {
    "default": None,
    "n_components >= n_features": FactorAnalysis(4),
    "diagonal": FactorAnalysis(1, "diagonal"),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", [FactorizedVI, AmortizedVI])
@pytest.mark.parametrize("data", LEGAL)
def test_odd_but_legal_data_get_a_sound_fit(data, kind, model):
    vi, legal = kind(MODELS[model], random_state=0, output="mean_sd"), LEGAL[data]
    moments = vi.fit_transform(legal)
    n, k = len(legal), moments.shape[1] // 2
    assert vi.converged_
    assert np.isfinite(vi.elbo_) and np.isfinite(vi.score_samples(legal)).all()
    assert np.isfinite(moments).all()
    assert (moments[:, k:] > 0).all() and (moments[:, k:] <= 1 + 1e-6).all()  # the prior's sd is 1
    assert (np.abs(moments[:, :k]) < 10 + 2 * np.sqrt(n)).all()
    assert moments.dtype == (np.float32 if legal.dtype == np.float32 else np.float64)


@each_estimator
@pytest.mark.parametrize("layout", ["read-only", "columns first", "big-endian"])
def test_the_layout_in_memory_changes_nothing(vi, layout):
    plain, other = (clone(vi).fit(data).transform(data) for data in (X, LEGAL[layout]))
    assert np.array_equal(plain, other)


@pytest.mark.parametrize(
    ("noise", "scale"),
    [
        ("isotropic", 1e-6),
        ("isotropic", 1e6),
        ("diagonal", 1e6),
        ("diagonal", np.array([1e-6, 1.0, 1e6])),
    ],
)
def test_units_of_x_move_the_elbo_by_their_jacobian_alone(noise, scale):
    """Default prior scales follow the data: every cell's density is divided by its unit."""
    plain, scaled = (
        FactorizedVI(FactorAnalysis(1, noise), tol=1e-11).fit(data) for data in (X, scale * X)
    )
    jacobian = np.log(scale * np.ones(3)).sum() * len(X)
    assert scaled.elbo_ == pytest.approx(plain.elbo_ - jacobian, abs=1e-6)
    # The sign of a latent is arbitrary.
    ours, theirs = scaled.transform(scale * X), plain.transform(X)
    np.testing.assert_allclose(ours * np.sign(ours[0] * theirs[0]), theirs, atol=1e-4)


def test_a_solver_that_cannot_is_refused_before_any_work(monkeypatch):
    """Checking the model takes two densities, the factorized fit to start from dozens."""
    written, calls = LinearModel.log_local, []

    def counted(*arguments):
        calls.append(arguments)
        return written(*arguments)

    monkeypatch.setattr(LinearModel, "log_local", counted)
    vi = AmortizedVI(LinearModel(), MLP((4,)), noise=GaussHermite(3), solver=CoordinateAscent())
    with pytest.raises(ValueError, match="CoordinateAscent needs closed-form updates"):
        vi.fit([[0.0], [1.0], [5.0]])
    assert len(calls) <= 3  # the model's checks
