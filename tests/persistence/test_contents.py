"""Forged save files: refused at load, or right in all that follows; no script, hang or crash."""

import collections
import resource
import time
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone

import skavi
from forged_files import FORMAT, SCRIPT, forgeries, outcome, use, write
from skavi import AmortizedVI, FactorizedVI
from skavi._platform.archive import read_archive
from skavi.inference_functions import MLP, DeepSet, Polynomial
from skavi.models import (
    BayesianDecoder,
    FactorAnalysis,
    GaussianProcess,
    HiddenMarkovModel,
    LinearModel,
    LocalLevel,
    MixedEffects,
    MixtureModel,
    RandomEffects,
    SawTimeSeries,
    TopicModel,
)
from skavi.noise import FixedDraws, GaussHermite, QuasiMonteCarlo
from skavi.persistence._contents import FITTED, OPTIONAL
from skavi.solvers import LBFGS

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(12, 3)) @ np.ones((3, 4)) + 0.3 * RNG.normal(size=(12, 4))
COLUMN, STUDIES = ROWS[:, :1], np.abs(ROWS[:, :2]) + 0.1
TIMED = np.column_stack([np.arange(12.0), ROWS[:, 0]])
COUNTS = RNG.poisson(2.0, size=(12, 5)).astype(float)
MIXED = np.column_stack([ROWS[:, :1], COUNTS[:, :1] % 3, COUNTS[:, 1:2], COUNTS.sum(1)])
COLUMNS = {"normal": [0], "ordinal": [1], "binomial": [2]}
GROUPED = np.column_stack([ROWS[:, 0], np.repeat(np.arange(4.0), 3)])
pytestmark = pytest.mark.filterwarnings("ignore")

#: Fits of every kind of model and function.
HONEST = {
    "linear": (FactorizedVI(LinearModel()), COLUMN),
    "polynomial": (AmortizedVI(LinearModel(), Polynomial(2)), COLUMN),
    "network": (AmortizedVI(FactorAnalysis(1), MLP((4,)), output="mean_sd"), ROWS),
    "factors": (FactorizedVI(FactorAnalysis(2, noise="diagonal")), ROWS),
    "topics": (FactorizedVI(TopicModel(2)), COUNTS),
    "topics given a covariate": (FactorizedVI(TopicModel(2, covariates=[-1])), COUNTS),
    "amortized topics": (AmortizedVI(TopicModel(2), MLP((4,))), COUNTS),
    "gaussian process": (FactorizedVI(GaussianProcess()), TIMED),
    "effects": (FactorizedVI(RandomEffects(), noise=QuasiMonteCarlo(32)), STUDIES),
    "decoder": (
        FactorizedVI(BayesianDecoder(1, (2,)), noise=FixedDraws(4), max_iter=4),
        ROWS[:, :2],
    ),
    "level": (FactorizedVI(LocalLevel()), COLUMN),
    "series": (
        AmortizedVI(SawTimeSeries(), Polynomial(1), solver=LBFGS(), noise=GaussHermite((4, 5))),
        COLUMN,
    ),
    "mixed columns": (FactorizedVI(FactorAnalysis(1, likelihood=COLUMNS, trials=[3])), MIXED),
    "mixture": (FactorizedVI(MixtureModel(2), n_init=1), ROWS[:, :2]),
    "states in a chain": (FactorizedVI(HiddenMarkovModel(2), n_init=1), COLUMN),
    "groups": (FactorizedVI(MixedEffects(0, 1, centred=True)), GROUPED),
    "groups by a set": (AmortizedVI(MixedEffects(0, 1, centred=True), DeepSet((4,), 2)), GROUPED),
    "init": (FactorizedVI(LinearModel(), init=FactorizedVI(LinearModel()).fit(COLUMN)), COLUMN),
}
#: Numbers of 1 MB by which a forgery may raise the peak of memory: a fit itself takes tens of them.
_MOST_MEGABYTES = 100


def honest_file(name, folder):
    """Return an honest fit's file, and its rows."""
    vi, X = HONEST[name]
    state = np.random.RandomState(3) if name == "linear" else 0
    vi = vi.set_params(max_iter=min(12, vi.max_iter), random_state=state).fit(X)
    path = folder / "honest.skavi"
    skavi.save(vi, path)
    return path, X


def peak():
    """Return the peak of this process's memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def campaign(name, folder, every):
    """Try one in `every` forgeries of a file; return counts by (category, outcome), failures, and
    the processor seconds that the slowest took in all, with what it was."""
    path, X = honest_file(name, folder)
    uses = use(skavi.load(path), X)
    header, arrays = read_archive(path)
    counts, wrong = collections.Counter[tuple[str, str]](), []
    slowest = 0.0, "none"
    for n, (category, what, forge) in enumerate(forgeries(header, arrays)):
        if n % every:
            continue
        forged, before = write(folder / "forged.skavi", *forge()), peak()
        began = time.process_time()
        came_of_it = outcome(forged, X, {}, uses)
        slowest = max(slowest, (time.process_time() - began, what))
        if peak() - before > _MOST_MEGABYTES:
            came_of_it = f"{peak() - before:.0f} MB more memory; {came_of_it}"
        counts[category, came_of_it if came_of_it in ("refused", "works") else "wrong"] += 1
        if came_of_it not in ("refused", "works"):
            wrong.append((what, came_of_it))
    return counts, wrong, slowest


def assert_all_fine(name, folder, every):
    counts, wrong, slowest = campaign(name, folder, every)
    print(name, sum(counts.values()), dict(counts), f"slowest {slowest[0]:.2f} s: {slowest[1]}")
    print(*(f"  {what}: {came_of_it}" for what, came_of_it in wrong), sep="\n")
    assert not wrong  # each is printed above, uncut
    assert {"refused"} <= {came_of_it for _, came_of_it in counts}


def test_a_few_forgeries_of_each_category(tmp_path):
    assert_all_fine("polynomial", tmp_path, every=101)


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_one_forgery_in_many(name, tmp_path):
    assert_all_fine(name, tmp_path, every=401)


@pytest.mark.nightly
@pytest.mark.parametrize("name", HONEST)
def test_every_forgery(name, tmp_path):
    assert_all_fine(name, tmp_path, every=1)


# --- cases that an attack has found -------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Honest headers and arrays by name."""
    found = {}
    for name in ATTACKED:
        folder = tmp_path_factory.mktemp("files")
        found[name] = read_archive(honest_file(name, folder)[0])
    return found


def _set(tree, path, value):
    *outer, last = path.split("/")
    for step in outer:
        tree = tree[int(step) if step.isdigit() else step]
    tree[int(last) if last.isdigit() else last] = value


ATTACKED = HONEST.keys() - {"topics", "amortized topics"}
_LIKELIHOOD = "params/model/params/likelihood/items"
_N_COLUMNS = "attributes/model_/attributes/columns_/value/items/0/1"
#: The levels of the column of trials.
_LEVELS = "attributes/model_/attributes/columns_/value/items/1/1/items/0/1/items/0/items/2/items"
_TRIALS = "attributes/model_/attributes/columns_/value/items/1/1/items/0/1/items/0/items"
_KINDS = "attributes/model_/attributes/columns_/value/items/2/1/items"
_WIDE = {"kind": "tuple", "items": [10**7, 10**7]}
_SWAPPED = [
    {"kind": "list", "items": [name, n_levels, {"kind": "list", "items": []}]}
    for name, n_levels in (("binomial", 0), ("ordinal", 3), ("normal", 0))
]
_ANY = {"class": "skavi.families.DiagonalNormal", "params": {}, "attributes": {}}
FOUND = [
    ("linear", "attributes/_doc_link_template", SCRIPT),
    ("linear", "attributes/model_/attributes/_doc_link_template", FORMAT),
    ("linear", "params/model/attributes/_doc_link_template", SCRIPT),
    ("linear", "params/tol", "1e-8"),
    ("linear", "params/device", "meta"),
    ("linear", "params/device", {"kind": "device", "value": "meta"}),
    ("linear", "attributes/n_features_in_", 2**27),
    ("linear", "attributes/noise_", {"kind": "component"} | _ANY),
    ("linear", "params/noise", {"kind": "component"} | _ANY),
    ("factors", "attributes/noise_/class", "skavi.noise.LinearPredictor"),
    ("polynomial", "attributes/inference_function_/params/degree", 200),
    ("polynomial", "params/inference_function/params/degree", 200),
    ("network", "attributes/inference_function_/params/context", _WIDE),
    ("network", "params/inference_function/params/context", _WIDE),
    ("network", "attributes/model_/params/n_components", 2**31),
    ("network", "params/model/params/n_components", 2**31),
    ("effects", "attributes/noise_/params/n_draws", 10**5),
    ("series", "attributes/noise_/params/n_nodes", 400),
    ("mixed columns", f"{_LIKELIHOOD}/0/1/items", []),
    ("mixed columns", f"{_LIKELIHOOD}/2/1/items/0", 3),
    ("mixed columns", _N_COLUMNS, 2**24),
    ("mixed columns", _LEVELS, {"kind": "strings", "values": ["a"]}),
    ("mixed columns", _LEVELS, ["a", "b"]),
    ("groups by a set", "params/model/params/response", None),
    # Places, kinds and readings of columns that the model does not name.
    ("mixed columns", f"{_TRIALS}/0", 0),
    ("mixed columns", f"{_KINDS}/0/items/0", "binomial"),
    ("mixed columns", _KINDS, _SWAPPED),
    ("groups", f"{_TRIALS}/3", False),
    # Components that do not suit one another.
    ("linear", "attributes/family_/class", "skavi.families.Chain"),
    ("decoder", "attributes/family_/class", "skavi.families.Chain"),
    ("groups", "attributes/family_/class", "skavi.families.Chain"),
    ("gaussian process", "attributes/noise_/class", "skavi.noise.GaussHermite"),
    ("init", "params/model", None),
    # Numbers whose squares are 0 or infinite, or that leave no finite density.
    ("level", "attributes/model_/attributes/initial_mean_", 1e300),
    ("level", "attributes/model_/attributes/initial_sd_", 1e300),
    ("level", "attributes/model_/attributes/initial_sd_", 5e-324),
    ("decoder", "attributes/model_/params/output_loc", 1e300),
    ("decoder", "attributes/model_/params/output_scale", 1e300),
    ("decoder", "attributes/model_/params/output_scale", 5e-324),
    ("mixture", "attributes/model_/params/mean_loc", 1e300),
    ("mixture", "attributes/model_/params/mean_loc", 1e100),
    ("states in a chain", "attributes/model_/params/mean_loc", 1e100),
]


@pytest.mark.parametrize(("name", "where", "value"), FOUND)
def test_what_an_attack_found_is_refused(files, name, where, value, tmp_path):
    header, arrays = (dict(part) for part in files[name])
    header["estimator"] = _copied(header["estimator"])
    _set(header["estimator"], where, value)
    path, before = write(tmp_path / "forged.skavi", header, arrays), peak()
    with pytest.raises(ValueError, match=r"forged\.skavi is no estimator that skavi saved: "):
        skavi.load(path)
    assert peak() - before < _MOST_MEGABYTES


@pytest.mark.parametrize(
    ("name", "where", "value", "why"),
    [
        ("polynomial", "inference_function_/attributes/input_scale_", 1e-320, "roots of variances"),
        ("polynomial", "inference_function_/attributes/input_scale_", 1e300, "roots of variances"),
        ("polynomial", "inference_function_/attributes/input_mean_", 1e300, "means of inputs"),
        ("polynomial", "inference_function_/attributes/input_mean_", 1e14, "means of inputs"),
        (
            "topics given a covariate",
            "model_/attributes/covariate_centre_",
            1e300,
            "no finite density of a row",
        ),
        ("linear", "_global_covariance", 1e300, "of no size that a fit keeps"),
        ("linear", "_global_covariance", 1e-320, "of no size that a fit keeps"),
    ],
)
def test_numbers_that_no_fit_leaves_are_refused(files, name, where, value, why, tmp_path):
    header, arrays = files[name]
    node = header["estimator"]["attributes"]
    for step in where.split("/"):
        node = node[step]
    forged = arrays | {node["name"]: np.full_like(arrays[node["name"]], value)}
    with pytest.raises(ValueError, match=why):
        skavi.load(write(tmp_path / "forged.skavi", header, forged))


def test_a_network_whose_means_have_no_finite_square_is_refused(tmp_path):
    """Weights of 1e300 lead to means of that size: finite, but under no finite density."""
    path, _ = honest_file("amortized topics", tmp_path)
    header, arrays = read_archive(path)
    first = header["estimator"]["attributes"]["_parameters"]["items"][0][1]["name"]
    forged = arrays | {first: np.full_like(arrays[first], 1e300)}
    with pytest.raises(ValueError, match="gives no finite factor"):
        skavi.load(write(tmp_path / "forged.skavi", header, forged))


def _copied(tree):
    if isinstance(tree, dict):
        return {name: _copied(value) for name, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("pos", [-1, 625, 700, 10**9])
def test_a_random_state_beyond_its_words_is_refused(files, pos, tmp_path):
    header, arrays = files["linear"]
    header = {**header, "estimator": _copied(header["estimator"])}
    items = header["estimator"]["params"]["random_state"]["state"]["items"]
    state = next(value for key, value in items if key == "state")
    next(pair for pair in state["items"] if pair[0] == "pos")[1] = pos
    with pytest.raises(ValueError, match="a generator that numpy never is in"):
        skavi.load(write(tmp_path / "forged.skavi", header, arrays))


def test_a_random_state_of_zeros_is_refused(files, tmp_path):
    """Normal draws from it would wait for another number for ever."""
    header, arrays = files["linear"]
    arrays = {n: a * 0 if a.dtype == np.uint32 else a for n, a in arrays.items()}
    with pytest.raises(ValueError, match="a generator that numpy never is in"):
        skavi.load(write(tmp_path / "forged.skavi", header, arrays))


def test_more_nodes_than_load_takes_from_a_file_are_handed_in(tmp_path):
    noise = FixedDraws(20_000)
    vi = FactorizedVI(LinearModel(), noise=noise, max_iter=1).fit(COLUMN)
    path = tmp_path / "fit.skavi"
    skavi.save(vi, path)
    with pytest.raises(ValueError, match=r"pass load\(path, noise=FixedDraws\(n_draws=20000\)\)"):
        skavi.load(path)
    assert skavi.load(path, noise=noise).elbo_ == vi.elbo_


# --- save checks what load will -----------------------------------------------------------------


def test_save_refuses_what_load_would(tmp_path):
    vi = FactorizedVI(LinearModel()).fit(COLUMN).set_params(tol="small")
    with pytest.raises(ValueError, match="'tol' parameter of FactorizedVI"):
        skavi.save(vi, tmp_path / "fit.skavi")
    vi = FactorizedVI(LinearModel()).fit(COLUMN)
    vi.extra_ = 1
    with pytest.raises(TypeError, match="'extra_' is nothing that a fit leaves on a FactorizedVI"):
        skavi.save(vi, tmp_path / "fit.skavi")
    assert not list(tmp_path.iterdir())


def test_all_fitted_attributes_are_declared():
    """Those of a fit, and what scikit-learn and `partial_fit` add."""
    vi = FactorizedVI(LinearModel()).fit(COLUMN).partial_fit(COLUMN)
    left = vars(vi).keys() - vi.get_params(deep=False).keys() - {"global_posterior_"}
    assert left <= FITTED.keys() | OPTIONAL.keys()
    assert FITTED.keys() <= left


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12, 1e25])
def test_honest_fits_of_any_scale_are_saved_and_loaded(scale, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vi = FactorizedVI(FactorAnalysis(1), max_iter=3).fit(ROWS * scale)
    skavi.save(vi, tmp_path / "fit.skavi")
    loaded = skavi.load(tmp_path / "fit.skavi")
    assert np.array_equal(loaded.transform(ROWS * scale), vi.transform(ROWS * scale))


@pytest.mark.parametrize("scale", [1e-28, 1e28])
@pytest.mark.parametrize(
    "name",
    ["polynomial", "network", "factors", "level", "series", "mixture", "states in a chain"],
)
def test_columns_at_the_ends_of_what_fits_take_are_saved_and_loaded(name, scale, tmp_path):
    """Fits take columns whose largest cell is from 1e-30 to 1e30 in size."""
    vi, X = HONEST[name]
    _assert_read_back(clone(vi).set_params(max_iter=3, random_state=0), X * scale, tmp_path)


@pytest.mark.parametrize("name", ["groups", "groups by a set", "gaussian process"])
@pytest.mark.parametrize("scale", [1e-28, 1e28])
def test_so_are_responses_beside_labels_and_times(name, scale, tmp_path):
    vi, X = HONEST[name]
    response = [0] if "groups" in name else [1]
    X = X.copy()
    X[:, response] *= scale
    _assert_read_back(clone(vi).set_params(max_iter=3, random_state=0), X, tmp_path)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_covariates_of_any_scale_are_saved_and_loaded(scale, tmp_path):
    X = np.column_stack([COUNTS, ROWS[:, 0] * scale])
    _assert_read_back(FactorizedVI(TopicModel(2, covariates=[-1]), max_iter=3), X, tmp_path)


def _assert_read_back(vi, X, folder):
    vi.fit(X)
    skavi.save(vi, folder / "fit.skavi")
    before = torch.get_rng_state()
    loaded = skavi.load(folder / "fit.skavi")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(loaded.transform(X), vi.transform(X))


def test_a_users_model_may_carry_anything_of_its_own_but_no_name_with_a_meaning(tmp_path):
    class Own(LinearModel):
        pass

    vi = FactorizedVI(Own(), max_iter=3).fit(COLUMN)
    vi.model_.mine_ = torch.ones(2)
    skavi.save(vi, tmp_path / "fit.skavi")
    assert torch.equal(skavi.load(tmp_path / "fit.skavi", Own()).model_.mine_, torch.ones(2))
    vi.model_._doc_link_template = SCRIPT
    with pytest.raises(TypeError, match="'_doc_link_template' is nothing"):
        skavi.save(vi, tmp_path / "no.skavi")
