"""What a saved estimator may hold: one check of a whole fit, on `save` and again on `load`.

A forged file has a right checksum, so nothing in it is taken on trust. Names come from what each
class declares (`Component.learned`, `FITTED` here), arguments are checked as `fit` checks them, and
sizes are compared with the numbers that the file does hold before anything of these sizes is made.
`save` runs the same check, so that no file is written which `load` would refuse.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from skavi._component import Component
from skavi._estimators.base import VariationalInference
from skavi._fit.linear_response import FLAT, sd_ratios
from skavi._fit.model_checks import check_links
from skavi._numerics.aligned import aligned
from skavi._numerics.whole_numbers import is_whole
from skavi.families import Family
from skavi.inference_functions import InferenceFunction, Table
from skavi.models import FactorAnalysis, LatentVariableModel
from skavi.noise import Noise
from skavi.objective import Objective, bind
from skavi.persistence._centre import check_centre
from skavi.persistence._columns import check_columns
from skavi.persistence._sizes import check_function, check_noise, check_theta
from skavi.solvers import Solver

ROLES: dict[str, type] = {
    "model": LatentVariableModel,
    "inference_function": InferenceFunction,
    "family": Family,
    "global_family": Family,
    "noise": Noise,
    "solver": Solver,
}
"""The kind of component in each role."""

#: Beside the number in a name such as "cuda:1". "meta" computes nothing, so it is none of them.
_DEVICES = re.compile(r"auto|(cpu|cuda|mps|xpu)(:\d{1,3})?")
#: Features that a model without a global for each may have: their zeros take 8 MB.
_MOST_FEATURES = 1 << 20
#: Names that scikit-learn keeps its own state under.
_SKLEARN_NAMES = ("_sk", "_metadata", "_callback", "_parent_callback")


def _is_a(kind: type, value) -> bool:
    return isinstance(value, kind)


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def _is_finite(value) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_spread(value) -> bool:
    return _is_number(value) and (math.isnan(value) or 0 <= value < math.inf)


def _is_vector(value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float64 and value.ndim == 1


def _is_finite_vector(value) -> bool:
    return _is_vector(value) and bool(np.isfinite(value).all())


def _is_matrix(value) -> bool:
    if value is None:
        return True
    is_array = isinstance(value, np.ndarray) and value.dtype == np.float64 and value.ndim == 2
    return is_array and bool(np.isfinite(value).all())


def _are_parameters(value) -> bool:
    return (
        isinstance(value, dict)
        and all(
            isinstance(n, str) and isinstance(v, np.ndarray) and v.dtype.kind == "f"
            for n, v in value.items()
        )
        and all(bool(np.isfinite(v).all()) for v in value.values())
    )


def _is_sentence(value):
    return value is None or (isinstance(value, str) and "<" not in value)


def _are_names(value) -> bool:
    is_array = isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1
    return is_array and all(type(name) is str for name in value)


def _is_output(value) -> bool:
    known = ("default", "pandas", "polars")
    return isinstance(value, dict) and set(value) == {"transform"} and value["transform"] in known


#: Natural steps of q(theta)'s parameters: no sd of a fit is below. Not measured.
_NARROWEST = 1e-12
#: What a fit leaves on an estimator: the check of each attribute, and what it needs.
FITTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n_features_in_": (lambda v: is_whole(v, 1), "an integer >= 1"),
    "elbo_": (_is_finite, "a finite number"),
    "elbo_se_": (_is_spread, "a number >= 0, or NaN"),
    "elbo_curve_": (_is_vector, "numbers in one dimension"),
    "n_iter_": (lambda v: is_whole(v, 0), "an integer >= 0"),
    "converged_": (lambda v: isinstance(v, bool), "True or False"),
    "stopped_early_": (lambda v: isinstance(v, bool), "True or False"),
    "suboptimality_": (_is_number, "a number"),
    "gradient_norm_": (_is_number, "a number"),
    "_raw_globals": (_is_finite_vector, "finite numbers in one dimension"),
    "_parameters": (_are_parameters, "finite arrays by name"),
    "_stiffness": (_is_matrix, "None, or finite numbers in two dimensions"),
}
FITTED |= {f"{role}_": (partial(_is_a, kind), f"a {kind.__name__}") for role, kind in ROLES.items()}
#: What not every fit leaves, and fits of earlier versions did not.
OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "starts_": (_is_vector, "numbers in one dimension"),
    "n_samples_fit_": (lambda v: is_whole(v, 1), "an integer >= 1"),
    "tol_": (_is_spread, "a number >= 0, or NaN"),
    "feature_names_in_": (_are_names, "names"),
    "_global_covariance": (_is_matrix, "None, or finite numbers in two dimensions"),
    "_corrected_reason": (_is_sentence, "None or a sentence without markup"),
    "_sklearn_output_config": (_is_output, "what set_output has set"),
}


def check_name(owner: BaseEstimator, name: str, own: bool) -> None:
    """Refuse an attribute that no fit leaves on an object of this class.

    Parameters
    ----------
    owner : estimator or Component
    name : str
        Of an attribute that is no argument.
    own : bool
        Whether the class is skavi's own. A user's class may carry any name that no base of
        skavi's or scikit-learn's gives a meaning to.
    """
    declared = owner.learned if isinstance(owner, Component) else (*FITTED, *OPTIONAL)
    if name in declared:
        return
    if own or not name.isidentifier() or _has_meaning(owner, name):
        raise TypeError(f"{name!r} is nothing that a fit leaves on a {type(owner).__name__}")


def _has_meaning(owner, name):
    """Say whether an attribute of that name would change what a class of skavi's or above does."""
    if name.startswith(("__", *_SKLEARN_NAMES)):
        return True
    for cls in type(owner).__mro__:
        if name in vars(cls):
            mine = cls.__module__.partition(".")[0] in ("skavi", "sklearn", "builtins", "abc")
            is_code = callable(vars(cls)[name]) or hasattr(vars(cls)[name], "__get__")
            if mine or is_code:
                return True
    return False


def check_contents(estimator: BaseEstimator, own: Callable[[Any], bool], handed: set[str]) -> None:
    """Raise an error that names the first thing that no fit leaves on an estimator.

    Parameters
    ----------
    estimator : FactorizedVI or AmortizedVI
        With its attributes, but nothing computed of them.
    own : callable
        Says whether a component's class is skavi's own.
    handed : set of str
        Roles whose object the user has handed in, and so vouches for.
    """
    fitted = vars(estimator)
    _check_attributes(estimator, fitted)
    _check_parameters(estimator)
    components = {n: v for n, v in fitted.items() if isinstance(v, Component)}
    for component in components.values():
        component.check()
        if isinstance(component, LatentVariableModel):
            component.check_roles()
    _check_fit_is_of(estimator, own)
    names = fitted.get("feature_names_in_")
    width, n_features = check_columns(fitted["model_"], fitted["n_features_in_"], names)
    raw = fitted["_raw_globals"]
    for name in ("model", "model_"):
        if name in components and own(components[name]) and not components[name].untold:
            check_theta(components[name], n_features, raw)
    objective = _objective(estimator, n_features)
    for name in sorted(components):
        if name.endswith("_"):
            components[name].check_learned(n_features)
    _check_globals(fitted, objective)
    if "noise" not in handed:
        for name in ("noise", "noise_"):
            if name in components:
                check_noise(components[name], objective, fitted.get("n_samples_fit_", 1))
    if all(map(own, (objective.model, objective.family, objective.global_family))):
        check_centre(objective, n_features, raw, fitted["noise_"])
    check_function(fitted, objective, width, own(fitted["inference_function_"]))


def _check_attributes(estimator, fitted):
    for name, (fine, need) in (FITTED | OPTIONAL).items():
        if name not in fitted and name in OPTIONAL:
            continue
        if name not in fitted:
            raise TypeError(f"there is no {name}")
        if not fine(fitted[name]):
            raise TypeError(f"{name} is {_short(fitted[name])}: it must be {need}")
    n_features = fitted["n_features_in_"]
    names = fitted.get("feature_names_in_")
    if names is not None and len(names) != n_features:
        raise ValueError(f"{len(names)} names for {n_features} features")


def _short(value):
    text = repr(value)
    return text if len(text) < 200 else f"a {type(value).__name__}"


def _check_parameters(estimator):
    """Check the arguments as `fit` does, without the machine at hand."""
    estimator._validate_params()
    if not _DEVICES.fullmatch(str(estimator.device)):
        raise ValueError(f"device={str(estimator.device)!r} is no device of a fit")
    if not isinstance(estimator.init, VariationalInference | None):
        raise TypeError(f"init is {_short(estimator.init)}: it must be a fitted estimator")


def _check_fit_is_of(estimator, own):
    """Check that the components are those that were fitted, where the user has chosen them.

    A fit sets what a model's arguments leave open, and may refine a rule of nodes.
    """
    model = estimator.model_
    if estimator.model is None and own(model) and type(model) is not FactorAnalysis:
        raise ValueError(f"model=None stands for factor analysis, but the fit is of {model!r}")
    for role in ROLES.keys() - {"noise"}:
        chosen, fitted = getattr(estimator, role, None), getattr(estimator, f"{role}_")
        if not isinstance(chosen, Component) or not own(chosen) or type(fitted) is Table:
            continue
        asked = {n: v for n, v in chosen.get_params(deep=False).items() if v is not None}
        same = type(chosen) is type(fitted) and all(
            _is_same(value, getattr(fitted, name)) for name, value in asked.items()
        )
        if not same:
            raise ValueError(
                f"{role}={chosen!r}, but the fit is of {fitted!r}: fit again, or set it back"
            )


def _is_same(one, other) -> bool:
    """Say whether an argument is that of a clone; objects other than numbers and names are."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(_is_same(one[name], other[name]) for name in one)
    is_plain = isinstance(one, Real | str | tuple | list | np.ndarray)
    return not is_plain or bool(np.array_equal(one, other))  # type: ignore[arg-type]


def _objective(estimator, n_features) -> Objective:
    """Return the ELBO of a fit, once its sizes are known to be those of the numbers at hand."""
    model, family = estimator.model_, estimator.family_
    if not family.random:
        raise ValueError(f"family={family}: q(z_n) needs a spread")
    if not model.least_globals(n_features) and n_features > _MOST_FEATURES:
        raise ValueError(f"n_features_in_={n_features} is more than the globals tell of")
    if not is_whole(model.count_latents(n_features), model.fewest_latents):
        raise ValueError(f"{type(model).__name__} has {model.count_latents(n_features)!r} latents")
    like = torch.zeros(1, n_features + model.columns_.width, dtype=torch.float64)
    check_links(model, family, estimator.global_family_)
    objective = bind(model, family, estimator.global_family_, like)
    needed = estimator.global_family_.n_parameters(objective.space.size)
    if needed != estimator._raw_globals.size:
        raise ValueError(
            f"_raw_globals has {estimator._raw_globals.size} numbers, but q(theta) needs {needed}"
        )
    return objective


def _check_globals(fitted, objective):
    """Check that theta is finite at q's centre, with finite sds, and so is what is kept of it."""
    raw, size = fitted["_raw_globals"], objective.space.size
    q_theta = objective.global_factor(aligned(raw))
    spread = q_theta.sd + q_theta.sd.reciprocal() if objective.global_family.random else q_theta.sd
    theta = objective.space.constrain(q_theta.mean)
    if not all(bool(torch.isfinite(each).all()) for each in (spread, *theta.values())):
        raise ValueError("_raw_globals stand for no finite q(theta)")
    stiffness, covariance = fitted["_stiffness"], fitted.get("_global_covariance")
    if stiffness is not None and stiffness.shape != (size, size):
        raise ValueError(f"_stiffness has shape {stiffness.shape} for {size} globals")
    if covariance is None:
        return
    if covariance.shape != (raw.size, raw.size) or fitted.get("_corrected_reason") is not None:
        raise ValueError("the covariance of the globals is of another kind")
    if not _is_covariance(covariance):
        raise ValueError("_global_covariance is the covariance of nothing")
    ratios = sd_ratios(objective, aligned(covariance), aligned(raw))
    if not bool(((ratios >= _NARROWEST) & (ratios <= FLAT)).all()):
        raise ValueError("_global_covariance is of no size that a fit keeps")


def _is_covariance(matrix: np.ndarray) -> bool:
    """Say whether a matrix is symmetric and positive definite, but for rounding."""
    sds = np.sqrt(np.abs(np.diagonal(matrix)))
    if not (sds > 0).all():
        return False
    correlation = aligned(matrix / sds / sds[:, None])
    if not bool(((correlation - correlation.mT).abs() < 1e-6).all()):
        return False
    jitter = 1e-9 * torch.eye(len(correlation), dtype=correlation.dtype)
    return not int(torch.linalg.cholesky_ex(correlation + jitter).info)
