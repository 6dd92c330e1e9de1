"""Saved estimators: nothing lost, nothing altered unnoticed, nothing in a file ever run."""

import copy
import hashlib
import io
import json
import pickle
import re
import stat
import warnings
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, InconsistentVersionWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from torch.distributions import Normal

import skavi
from skavi import AmortizedVI, FactorizedVI, persistence
from skavi._platform.archive import read_archive, write_archive
from skavi.callbacks import ElboMonitor
from skavi.families import DiagonalNormal, FullNormal, Point
from skavi.inference_functions import MLP, Constant, DeepSet, Polynomial, TorchFunction
from skavi.models import (
    BayesianDecoder,
    FactorAnalysis,
    GaussianProcess,
    HiddenMarkovModel,
    HierarchicalModel,
    LinearModel,
    LocalLevel,
    MixedEffects,
    MixtureModel,
    NonlinearModel,
    RandomEffects,
    SawTimeSeries,
    TopicModel,
)
from skavi.noise import FixedDraws, GaussHermite, MonteCarlo, QuasiMonteCarlo
from skavi.persistence._write import COMPONENTS
from skavi.posterior import GlobalPosterior
from skavi.solvers import LBFGS, Adam, CoordinateAscent, Newton

ROWS = np.random.default_rng(0).normal(size=(12, 3)) @ np.ones((3, 4))
ROWS += 0.3 * np.random.default_rng(1).normal(size=ROWS.shape)
COLUMN = ROWS[:, :1]
STUDIES = np.abs(ROWS[:, :2]) + 0.1
TIMED = np.column_stack([np.arange(12.0), ROWS[:, 0]])
GROUPED = np.column_stack([ROWS[:, 0], np.repeat(np.arange(4.0), 3)])
COUNTS = np.random.default_rng(2).poisson(2.0, size=(12, 5)).astype(float)
FILES = Path(__file__).parent / "files"
EARLIER = json.loads((FILES / "said.json").read_text())
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*did not converge:sklearn.exceptions.ConvergenceWarning",
    "ignore::skavi.closability.AmortizationWarning",
    "ignore::skavi.models.CouplingBiasWarning",
)


class Wave(HierarchicalModel):
    """A user's own model, with a function among its arguments."""

    def __init__(self, scale=1.0, bend=torch.sin):
        self.scale = scale
        self.bend = bend

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {"theta": Normal(0.0, 10.0)}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), self.scale)

    def likelihood(self, z, theta):
        return Normal(theta["theta"] + z * self.bend(z) + z, torch.exp(torch.cos(z)))

    def adapted(self, X, weights):
        model = clone(self)
        model.spread_ = {"sd": X.std(), "n": (len(X), X.shape[1])}
        return model


class Slopes(HierarchicalModel):
    """A user's regression, without latents."""

    n_latents = 0

    def global_prior(self, n_features):
        return {"slopes": Normal(torch.zeros(n_features - 1), 1.0)}

    def log_likelihood(self, theta, z, X):
        return Normal(X[:, :-1] @ theta["slopes"], 1.0).log_prob(X[:, -1])


class Halved(Polynomial):
    """A user's own inference function."""

    def features(self, inputs):
        return super().features(inputs) / 2


def network(activation=torch.nn.Tanh, dtype=torch.float64):
    torch_state = torch.get_rng_state()
    layers = [torch.nn.Linear(1, 4, dtype=dtype), activation(), torch.nn.Linear(4, 2, dtype=dtype)]
    torch.set_rng_state(torch_state)
    return torch.nn.Sequential(*layers)


def halve(step):
    return 0.5**step


# Every shipped class at least once: (estimator, X, what is to be handed in).
CASES = {
    "factor analysis": (FactorizedVI(FactorAnalysis(noise="diagonal")), ROWS, {}),
    "factor analysis, own scales": (
        FactorizedVI(FactorAnalysis(mean_loc=np.zeros(4), loading_scale=np.float32(2))),
        ROWS,
        {},
    ),
    "default factorized": (FactorizedVI(), ROWS, {}),
    "default amortized": (AmortizedVI(), ROWS, {}),
    "decoder": (FactorizedVI(BayesianDecoder(1, (2,)), noise=FixedDraws(2)), ROWS[:, :2], {}),
    "gaussian process": (FactorizedVI(GaussianProcess()), TIMED, {}),
    "linear": (FactorizedVI(LinearModel(), solver=Newton()), COLUMN, {}),
    "linear amortized": (AmortizedVI(LinearModel(), Polynomial(2)), COLUMN, {}),
    "constant": (AmortizedVI(LinearModel(), Constant(), family=FullNormal()), COLUMN, {}),
    "hidden_markov": (FactorizedVI(HiddenMarkovModel(2), n_init=1), COLUMN, {}),
    "mixture": (FactorizedVI(MixtureModel(2), n_init=1), COLUMN, {}),
    "mixture of mixed columns": (
        FactorizedVI(
            MixtureModel(2, {"normal": [0, 1], "ordinal": [2], "binomial": [3]}, trials=[4]),
            n_init=1,
        ),
        np.column_stack([ROWS[:, :2], COUNTS[:, :1] % 3, COUNTS[:, 1:2], COUNTS.sum(1)]),
        {},
    ),
    "mixture of noisy columns": (
        FactorizedVI(MixtureModel(2, {"student_t": [0], "negative_binomial": [1]}), n_init=1),
        np.column_stack([ROWS[:, 0], COUNTS[:, 0]]),
        {},
    ),
    "mixed effects": (FactorizedVI(MixedEffects(centred=True)), GROUPED, {}),
    "mixed effects by a set": (
        AmortizedVI(MixedEffects(centred=True), DeepSet((4,), 2)),
        GROUPED,
        {},
    ),
    "local level": (FactorizedVI(LocalLevel(), solver=CoordinateAscent()), COLUMN, {}),
    "point": (FactorizedVI(LinearModel(), global_family=Point()), COLUMN, {}),
    "nonlinear": (FactorizedVI(NonlinearModel(), noise=GaussHermite((4, 5))), COLUMN, {}),
    "random effects": (FactorizedVI(RandomEffects(), noise=QuasiMonteCarlo(32)), STUDIES, {}),
    "random effects amortized": (AmortizedVI(RandomEffects(), MLP((4,))), STUDIES, {}),
    "series": (AmortizedVI(SawTimeSeries(), Polynomial(1, context=(2, 0))), COLUMN, {}),
    "fixed draws": (
        FactorizedVI(
            LinearModel(), noise=FixedDraws(8), solver=LBFGS(), global_family=DiagonalNormal()
        ),
        COLUMN,
        {},
    ),
    "fresh draws": (
        FactorizedVI(LinearModel(), noise=MonteCarlo(2), solver=Adam(batch_size=5)),
        COLUMN,
        {},
    ),
    "topics": (FactorizedVI(TopicModel(2)), COUNTS, {}),
    "topics given a covariate": (FactorizedVI(TopicModel(2, covariates=[-1])), COUNTS, {}),
    "topics of sparse counts": (FactorizedVI(TopicModel(2)), csr_array(COUNTS), {}),
    "torch module": (
        AmortizedVI(LinearModel(), network()),
        COLUMN,
        {"inference_function": network},
    ),
    "float32 module": (
        AmortizedVI(LinearModel(), network(dtype=torch.float32)),
        COLUMN,
        {"inference_function": lambda: network(dtype=torch.float32)},
    ),
    "torch function": (
        AmortizedVI(LinearModel(), TorchFunction(network(), context=(0, 0))),
        COLUMN,
        {"inference_function": lambda: TorchFunction(network(), context=(0, 0))},
    ),
    "own model": (FactorizedVI(Wave(2.0)), COLUMN, {"model": lambda: Wave(2.0)}),
    "own regression": (FactorizedVI(Slopes()), ROWS, {"model": Slopes}),
    "own model and function": (
        AmortizedVI(Wave(), Halved(3)),
        COLUMN,
        {"model": Wave, "inference_function": lambda: Halved(3)},
    ),
    "own schedule": (
        FactorizedVI(LinearModel(), solver=Adam(schedule=halve), noise=MonteCarlo()),
        COLUMN,
        {"solver": lambda: Adam(schedule=halve)},
    ),
}
each_case = pytest.mark.parametrize("name", CASES)
_fits = {}


def fit_of(name):
    """Fit a case, once."""
    if name not in _fits:
        vi, X, _ = CASES[name]
        vi = clone(vi).set_params(random_state=0, max_iter=12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            _fits[name] = vi.fit(X)
    return _fits[name], CASES[name][1], {role: make() for role, make in CASES[name][2].items()}


def saved(estimator, folder):
    path = folder / "fit.skavi"
    skavi.save(estimator, path)
    return path


def test_the_cases_cover_every_class_that_a_file_can_hold():
    seen = set()
    for name in CASES:
        fitted = vars(fit_of(name)[0])
        seen |= {type(value) for value in fitted.values()}
    left = {name for name, cls in COMPONENTS.items() if cls not in seen}
    assert not left, f"add a case above for {sorted(left)}"


# --- nothing is lost ----------------------------------------------------------------------------


def assert_same(one, other, where="estimator"):
    """Compare two values to the last bit, into components and modules."""
    assert type(one) is type(other), where
    if isinstance(one, np.ndarray | np.generic):
        assert one.dtype == other.dtype, where
        assert_array_equal(one, other, err_msg=where)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, torch.nn.Module):
        assert_same(dict(one.state_dict()), dict(other.state_dict()), where)
        assert [m.training for m in one.modules()] == [m.training for m in other.modules()]
    elif isinstance(one, np.random.RandomState):
        assert_same(one.get_state(), other.get_state(), where)
    elif isinstance(one, dict):
        assert set(one) == set(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, tuple | list):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif hasattr(one, "get_params"):
        assert_same(vars(one), vars(other), where)
    elif isinstance(one, GlobalPosterior):
        assert_same(one.mean, other.mean, where)
        assert_same(one.corrected_sd, other.corrected_sd, where)
        assert_same(one.corrected_reason, other.corrected_reason, where)
    else:
        assert one == other or (one != one and other != other), where


@each_case
def test_a_loaded_estimator_is_the_saved_one_to_the_last_bit(name, tmp_path):
    vi, X, given = fit_of(name)
    vi.global_posterior_.mean  # noqa: B018  (kept once read: not part of the state)
    loaded = skavi.load(saved(vi, tmp_path), **given)
    assert_same(vars(vi), vars(loaded))
    for rows in (X, X[:5], X.astype(np.float32)):
        assert_array_equal(loaded.transform(rows), vi.transform(rows))
        assert loaded.score(rows) == vi.score(rows)
    posterior, again = vi.posterior(X), loaded.posterior(X)
    assert_array_equal(again.sd, posterior.sd)
    assert_array_equal(again.sample(3, 0), posterior.sample(3, 0))


@each_case
def test_a_loaded_estimator_fits_as_the_saved_one(name, tmp_path):
    vi, X, given = fit_of(name)
    loaded = skavi.load(saved(vi, tmp_path), **given)
    short = {"max_iter": 3}
    one, other = (clone(v).set_params(**short).fit(X) for v in (vi, loaded))
    assert other.elbo_ == one.elbo_


@pytest.mark.parametrize("copied", ["pickle", "joblib"])
@each_case
def test_pickle_and_joblib_round_trips_are_bit_equal(name, copied, tmp_path):
    vi, X, _ = fit_of(name)
    if copied == "pickle":
        loaded = pickle.loads(pickle.dumps(vi))
    else:
        joblib.dump(vi, tmp_path / "fit")
        loaded = joblib.load(tmp_path / "fit")
    assert_array_equal(loaded.transform(X), vi.transform(X))
    assert loaded.score(X) == vi.score(X)


def test_copies_are_of_the_latest_fit():
    vi = FactorizedVI(LinearModel()).fit(COLUMN)
    for shift in (0.0, 5.0):
        vi.fit(COLUMN + shift)
        for copied in (pickle.loads(pickle.dumps(vi)), copy.deepcopy(vi), copy.copy(vi)):
            assert copied.elbo_ == vi.elbo_
            assert copied.global_posterior_.mean["theta"] == vi.global_posterior_.mean["theta"]
            assert_array_equal(copied.transform(COLUMN), vi.transform(COLUMN))


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if not case[2]])
def test_skops_needs_no_trust_but_in_skavis_own_types(name):
    vi, X, _ = fit_of(name)
    data = skops.io.dumps(vi)
    untrusted = skops.io.get_untrusted_types(data=data)
    assert untrusted and all(kind.startswith("skavi.") for kind in untrusted)
    assert_array_equal(skops.io.loads(data, trusted=untrusted).transform(X), vi.transform(X))


def test_feature_names_and_output_are_kept(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["a", "b", "ç", "d"])
    vi = FactorizedVI(FactorAnalysis(), output="mean_sd").set_output(transform="pandas").fit(frame)
    loaded = skavi.load(saved(vi, tmp_path))
    pd.testing.assert_frame_equal(loaded.transform(frame), vi.transform(frame))
    assert loaded.feature_names_in_.dtype == object
    with pytest.raises(ValueError, match="feature names"):
        loaded.transform(frame.rename(columns={"a": "z"}))


def test_a_random_state_stays_where_it_stood(tmp_path):
    vi = FactorizedVI(LinearModel(), random_state=np.random.RandomState(3)).fit(COLUMN)
    loaded = skavi.load(saved(vi, tmp_path))
    assert_same(vi.random_state, loaded.random_state)
    other = np.random.RandomState(np.random.PCG64(0))
    with pytest.raises(TypeError, match=r"FactorizedVI.random_state runs PCG64"):
        skavi.save(FactorizedVI(LinearModel(), random_state=other).fit(COLUMN), tmp_path / "no")


def test_init_is_kept_with_its_own_arguments(tmp_path):
    start = FactorizedVI(Wave(1.0)).fit(COLUMN)
    vi = AmortizedVI(Wave(3.0), Polynomial(1), init=start, max_iter=5).fit(COLUMN)
    loaded = skavi.load(saved(vi, tmp_path), model=Wave(3.0))
    assert (loaded.model.scale, loaded.init.model.scale) == (3.0, 1.0)
    assert_array_equal(loaded.init.transform(COLUMN), start.transform(COLUMN))


def test_a_changed_parameter_and_callbacks(tmp_path):
    vi = FactorizedVI(LinearModel(), tol=np.float64(1e-6)).set_callbacks(ElboMonitor()).fit(COLUMN)
    vi.set_params(max_iter=1, tol=0.5, device=torch.device("cpu"))
    loaded = skavi.load(saved(vi, tmp_path))
    assert loaded.get_params()["tol"] == 0.5
    assert loaded.device == torch.device("cpu")
    assert not hasattr(loaded, "_skl_callbacks")


# --- what is not saved --------------------------------------------------------------------------


def test_only_fitted_estimators_are_saved(tmp_path):
    path = tmp_path / "fit.skavi"
    with pytest.raises(NotFittedError):
        skavi.save(FactorizedVI(), path)
    with pytest.raises(TypeError, match=r"estimator is a Pipeline: save writes FactorizedVI and"):
        skavi.save(make_pipeline(FactorizedVI()), path)
    with pytest.raises(TypeError, match="estimator is a Sub"):
        skavi.save(type("Sub", (FactorizedVI,), {})().fit(ROWS), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        (print, "FactorizedVI.model_.extra_ is a builtins.builtin_function_or_method"),
        (np.array([None]), "dtype object"),
        (np.zeros(2, complex), "dtype complex128"),
        (torch.zeros(2, dtype=torch.bfloat16), "bfloat16 tensor"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        ({"a": [1, {2}]}, r"FactorizedVI.model_.extra_\['a'\]\[1\] is a builtins.set"),
        (network(), "FactorizedVI.model_.extra_ is a torch module"),
    ],
)
def test_what_is_no_data_is_refused_by_name(attribute, message, tmp_path):
    vi = copy.deepcopy(fit_of("own model")[0])
    vi.model_.extra_ = attribute
    path = tmp_path / "fit.skavi"
    with pytest.raises(TypeError, match=message):
        skavi.save(vi, path)
    assert not path.exists()


# --- classes of the user's own ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("own model", {}, r"model = a .*Wave, but none was handed in: .* load\(path, model=Wave\("),
        ("own model", {"model": LinearModel()}, "but a skavi.models.LinearModel was handed in"),
        ("own model", {"model": Wave(1.0)}, r"Wave\(scale=2.0\), but scale=1.0 was handed in"),
        ("own model", {"model": Wave(2.0), "noise": MonteCarlo()}, "no noise of yours"),
        ("own model and function", {"model": Wave()}, "inference_function = a .*Halved"),
        ("torch module", {}, "inference_function = a torch.nn.modules.container.Sequential"),
        ("torch module", {"inference_function": network(torch.nn.ReLU)}, "another Sequential"),
        ("own schedule", {}, r"solver = a skavi.solvers.Adam, but none was handed in"),
        ("linear", {"model": LinearModel(tau=9.0)}, r"LinearModel\(tau=1.155\), but tau=9.0"),
        ("linear", {"model": Wave()}, "model = a skavi.models.LinearModel, but a .*Wave was"),
    ],
)
def test_what_is_handed_in_must_be_what_was_saved(name, given, message, tmp_path):
    path = saved(fit_of(name)[0], tmp_path)
    with pytest.raises(ValueError, match=message):
        skavi.load(path, **given)


def test_a_known_model_may_be_handed_in_too(tmp_path):
    vi, X, _ = fit_of("linear")
    loaded = skavi.load(saved(vi, tmp_path), model=LinearModel())
    assert_array_equal(loaded.transform(X), vi.transform(X))


def test_the_object_handed_in_is_not_changed(tmp_path):
    vi, X, _ = fit_of("torch module")
    mine = network()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    loaded = skavi.load(saved(vi, tmp_path), inference_function=mine)
    assert_same(before, dict(mine.state_dict()))
    assert loaded.inference_function is not mine
    assert_array_equal(loaded.transform(X), vi.transform(X))


def test_nothing_is_imported_from_a_name_in_a_file(tmp_path):
    """A model whose class is named ``antigravity.Trap``: no such module may be loaded."""
    path = saved(fit_of("own model")[0], tmp_path)
    header, arrays = read_archive(path)
    text = json.dumps(header).replace(f"{Wave.__module__}.Wave", "skavi_trap.Trap")
    (tmp_path / "skavi_trap.py").write_text("raise SystemExit('code of a file was run')")
    write_archive(path, json.loads(text), arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(ValueError, match=r"model = a skavi_trap.Trap, but none"):
            skavi.load(path)
        with pytest.raises(ValueError, match=r"skavi_trap.Trap, but a .*Wave was handed in"):
            skavi.load(path, model=Wave(2.0))


# --- versions -----------------------------------------------------------------------------------


def rewritten(path, change):
    """Let `change` alter the header of a saved file, its checksum made good again."""
    header, arrays = read_archive(path)
    change(header)
    write_archive(path, header, arrays)
    return path


@pytest.mark.parametrize("name", EARLIER)
def test_a_file_of_an_earlier_tree_still_opens(name):
    """Written before modules were moved into folders; JSON tells what each fit said then.

    Closed forms and networks repeat to rounding. Rows' local problems are solved again by
    `transform`, to 1e-9 nats: their means then agree to the root of that. Topics' logits were then
    what `transform` gave, each 1e-4 sds or less from the step before, which left them 1.2e-4 short.
    """
    given = {}
    if name == "torch_module":
        with torch.random.fork_rng():
            given["inference_function"] = torch.nn.Linear(1, 2, dtype=torch.float64)
    fit = skavi.load(FILES / f"{name}.skavi", **given)
    said = EARLIER[name]
    assert fit.elbo_ == said["elbo"]
    for global_, mean in said["globals"].items():
        assert_array_equal(fit.global_posterior_.mean[global_], mean)
    latents, error = fit.transform(said["X"]), 1e-5
    if name == "topics":
        latents, error = fit.posterior(said["X"]).logits.mean, 3e-4
    np.testing.assert_allclose(latents, said["transform"], rtol=1e-5, atol=error)
    np.testing.assert_allclose(fit.score(said["X"]), said["score"], rtol=1e-8)


def test_a_file_of_an_earlier_tree_has_no_correction_and_says_so():
    posterior = skavi.load(FILES / "factor_analysis.skavi").global_posterior_
    assert posterior.corrected_sd is None
    assert "earlier version of skavi" in posterior.corrected_reason


def test_the_earlier_files_hold_every_class_of_then():
    """All 26 components that there were; later ones need no file of an earlier tree."""
    found = set()
    for name in EARLIER:
        header, _ = read_archive(FILES / f"{name}.skavi")
        found |= set(re.findall(r"skavi\.\w+\.\w+", json.dumps(header)))
    assert len(found) == 26
    assert found <= set(COMPONENTS)


def test_another_version_warns_and_loads(tmp_path):
    vi, X, _ = fit_of("linear")
    path = rewritten(saved(vi, tmp_path), lambda header: header["versions"].update(skavi="0.0.1"))
    with pytest.warns(InconsistentVersionWarning, match=r"saved by skavi 0\.0\.1, and this is"):
        loaded = skavi.load(path)
    assert_array_equal(loaded.transform(X), vi.transform(X))
    assert issubclass(persistence.SavedVersionWarning, InconsistentVersionWarning)


@pytest.mark.parametrize("saved_version", ["0.0.1", "of an unknown version"])
def test_a_pickle_of_another_version_warns_and_loads(saved_version):
    """As scikit-learn's own estimators do; a pickle of a skavi without the mark is unknown."""
    vi, X, _ = fit_of("linear")
    copy, state = FactorizedVI.__new__(FactorizedVI), vi.__getstate__()
    assert state.pop("_skavi_version") == skavi.__version__
    if saved_version == "0.0.1":
        state["_skavi_version"] = saved_version
    with pytest.warns(persistence.SavedVersionWarning, match=f"^FactorizedVI .* {saved_version}, "):
        copy.__setstate__(state)
    assert_array_equal(copy.transform(X), vi.transform(X))
    assert not hasattr(copy, "_skavi_version") and not hasattr(vi, "_skavi_version")


def test_a_pickle_of_this_version_says_which_it_is():
    """The number is in the bytes, and another one in its place is noticed by `pickle.loads`."""
    written = skavi.__version__.encode()
    other = b"9" * len(written)
    data = pickle.dumps(fit_of("linear")[0])
    assert data.count(written) == 1
    with pytest.warns(InconsistentVersionWarning, match=f"saved by skavi {other.decode()}, "):
        pickle.loads(data.replace(written, other))


def test_a_later_format_is_refused(tmp_path):
    later = {"schema": persistence.SCHEMA + 1, "versions": {"skavi": "9.0"}}
    path = rewritten(saved(fit_of("linear")[0], tmp_path), lambda header: header.update(later))
    with pytest.raises(ValueError, match=r"format 2, of skavi 9\.0, .* upgrade skavi"):
        skavi.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(format="skavi checkpoint"),
        lambda header: header.update(schema="1"),
        lambda header: header.update(schema=0),
        lambda header: header.update(versions=[]),
        lambda header: header.pop("versions"),
        lambda header: header["versions"].pop("skavi"),
        lambda header: header.pop("estimator"),
        lambda header: header.update(estimator=[]),
        lambda header: header["estimator"].update({"class": "Pipeline"}),
        lambda header: header["estimator"]["params"].update(fit=1),
        lambda header: header["estimator"]["attributes"].update(fit=1),
        lambda header: header["estimator"]["attributes"].update(__class__=1),
        lambda header: header["estimator"]["attributes"].update(_n_features_out=1),
        lambda header: header["estimator"]["attributes"].pop("model_"),
        lambda header: header["estimator"]["attributes"].update(model_=None),
        lambda header: header["estimator"]["attributes"]["model_"].update({"class": "os.system"}),
        lambda header: header["estimator"]["attributes"]["model_"]["attributes"].update(
            log_local=1
        ),
        lambda header: header["estimator"]["attributes"]["noise_"].update(kind="code"),
        lambda header: header["estimator"]["attributes"]["elbo_curve_"].update(name="b0"),
        lambda header: header["estimator"]["attributes"].update(n_features_in_="4"),
        lambda header: header["estimator"]["attributes"].update(_global_covariance=1.0),
        lambda header: header["estimator"]["attributes"].update(_corrected_reason="none"),
        lambda header: header["estimator"]["attributes"]["_global_covariance"].update(name="a0"),
    ],
)
def test_a_header_that_save_never_writes_is_refused(change, tmp_path):
    path = rewritten(saved(fit_of("linear")[0], tmp_path), change)
    with pytest.raises(ValueError, match=r"fit\.skavi"):
        skavi.load(path)


# --- files that were altered, and files that were forged ----------------------------------------


def test_every_altered_file_is_refused(tmp_path):
    """1,000 flips of one bit, and 200 files that end early or go on: a checksum finds them all."""
    path = saved(fit_of("linear amortized")[0], tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    altered = []
    for place, bit in zip(
        rng.integers(len(whole), size=1000), rng.integers(8, size=1000), strict=True
    ):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(bit)
        altered.append(bytes(flipped))
    altered += [whole[: int(end)] for end in rng.integers(len(whole), size=100)]
    altered += [whole + bytes(1), bytes(1) + whole, b"", bytes(64), whole[64:], whole + whole]
    altered += [
        whole[:place] + whole[place + 64 :] for place in rng.integers(len(whole) - 64, size=94)
    ]
    for content in altered:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"fit\.skavi is damaged, or not a file of skavi's"):
            skavi.load(path)
    path.write_bytes(whole)
    skavi.load(path)


@pytest.mark.slow
def test_every_byte_of_a_file_is_under_the_checksum(tmp_path):
    path = saved(fit_of("linear")[0], tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            skavi.load(path)


def forged(path, members, comment=b""):
    """Write a zip of (ZipInfo or name, content) with the right checksum, as a forger can."""
    memory = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(memory, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # of duplicate names
        for info, content in members:
            archive.writestr(info, content)
        archive.comment = b"0" * 64
    body = memory.getvalue()[:-64]
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    return path


class Payload:
    """What a pickle could do: write a file when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def _npy(array):
    memory = io.BytesIO()
    np.save(memory, array, allow_pickle=True)
    return memory.getvalue()


def _npy_header(text):
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _with_mode(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def _compressed(name):
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


FORGERIES = {
    "an object array": lambda o: [o.header("|O", [1]), ("a0.npy", o.pickled_array)],
    "an object array declared as floats": lambda o: [
        o.header("<f8", [1]),
        ("a0.npy", o.pickled_array),
    ],
    "a bare pickle as array": lambda o: [o.header("<f8", [1]), ("a0.npy", o.pickle)],
    "a bare pickle as header": lambda o: [("header.json", o.pickle)],
    "a pickle beside the header": lambda o: [*o.members, ("data.pkl", o.pickle)],
    "a structured array": lambda o: [
        o.header("<f8", [1]),
        ("a0.npy", _npy(np.zeros(1, [("a", "O")]))),
    ],
    "an expression for a shape": lambda o: [
        o.header("<f8", [1]),
        ("a0.npy", _npy_header(f"open({str(o.marker)!r}, 'w')")),
    ],
    "a path upwards": lambda o: [*o.members, ("../up.npy", b"x")],
    "an absolute path": lambda o: [*o.members, ("/skavi-forged.npy", b"x")],
    "a link for an array": lambda o: [
        o.members[0],
        (_with_mode("a0.npy", stat.S_IFLNK | 0o777), str(o.marker)),
    ],
    "one name twice": lambda o: [*o.members, o.members[-1]],
    "no header": lambda o: o.members[1:],
    "no array": lambda o: o.members[:1],
    "a bomb of zeros": lambda o: [o.members[0], (_compressed("a0.npy"), bytes(1 << 24))],
    "a compressed header": lambda o: [(_compressed("header.json"), o.members[0][1])],
    "8 TB declared": lambda o: [
        o.header("<f8", [10**12]),
        (
            "a0.npy",
            _npy_header(
                "{'descr': '<f8', 'fortran_order': False, 'shape': (10**12,)}".replace(
                    "10**12", str(10**12)
                )
            ),
        ),
    ],
    "a negative shape": lambda o: [o.header("<f8", [-1]), o.members[1]],
    "a shape of floats": lambda o: [o.header("<f8", [1.0]), o.members[1]],
    "a shape beyond any integer": lambda o: [o.header("<f8", [10**30]), o.members[1]],
    "a deep nest": lambda o: [("header.json", "[" * 200_000)],
    "a deep tree": lambda o: [("header.json", o.text.replace("1.155", o.nest))],
    "a header of another kind": lambda o: [("header.json", "[]")],
    "no JSON": lambda o: [("header.json", b"\xff\xfe{")],
}


class Original:
    """The parts of a good file, for a forger."""

    def __init__(self, path, marker):
        with zipfile.ZipFile(path) as archive:
            self.members = [(i.filename, archive.read(i)) for i in archive.infolist()]
        self.marker = marker
        self.pickle = pickle.dumps(Payload(marker))
        self.pickled_array = _npy(np.array([Payload(marker)], dtype=object))
        self.text = self.members[0][1].decode()
        self.nest = '{"kind": "list", "items": [' * 600 + "]}" * 600

    def header(self, dtype, shape):
        envelope = json.loads(self.text)
        return "header.json", json.dumps(
            {"header": envelope["header"], "arrays": {"a0": {"dtype": dtype, "shape": shape}}}
        )


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_file_is_refused_and_nothing_in_it_is_run(forgery, tmp_path):
    marker = tmp_path / "marker"
    good = saved(fit_of("linear")[0], tmp_path)
    original = Original(good, marker)
    path = forged(tmp_path / "forged.skavi", forgery(original))
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"forged\.skavi is (damaged|no estimator)"):
        skavi.load(path)
    assert not marker.exists()
    assert set(tmp_path.iterdir()) == before


def test_the_forger_can_forge(tmp_path):
    """What makes the test above a test: the same tools make a file that loads, a payload works."""
    original = Original(saved(fit_of("linear")[0], tmp_path), tmp_path / "marker")
    skavi.load(forged(tmp_path / "copy.skavi", original.members))
    pickle.loads(original.pickle).close()
    assert original.marker.exists()


def test_a_saved_file_is_its_owners_alone(tmp_path):
    path = saved(fit_of("linear")[0], tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == saved(fit_of("linear")[0], tmp_path).read_bytes()


def test_a_failed_save_leaves_the_file_that_was_there(tmp_path):
    vi, X, _ = fit_of("linear")
    path = saved(vi, tmp_path)
    broken = clone(vi).fit(X)
    broken.extra_ = print
    with pytest.raises(TypeError):
        skavi.save(broken, path)
    assert_array_equal(skavi.load(path).transform(X), vi.transform(X))
    with pytest.raises(OSError):
        skavi.save(vi, tmp_path / "missing" / "fit.skavi")
