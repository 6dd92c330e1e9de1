"""Components as users name them: in errors about their kind, and against those of a fit."""

import importlib
import re

from skavi._component import Component

#: Where the public classes of each kind of component are.
_HOMES = {
    "model": "skavi.models",
    "inference_function": "skavi.inference_functions",
    "family": "skavi.families",
    "global_family": "skavi.families",
    "noise": "skavi.noise",
    "solver": "skavi.solvers",
}
#: What determines a fit's parameters; with others they have no meaning.
_FITTED = ("model", "family", "global_family", "inference_function")
_PLAIN = (bool, int, float, str, tuple)


def with_public_names(estimator, message: str) -> str:
    """Return scikit-learn's message about a parameter, with public names and what to write."""
    name = re.match(r"The '(\w+)' parameter", message)
    message = re.sub(r"\b(skavi\.\w+)(\._\w+)+\.", r"\1.", message)
    if name is None or name[1] not in _HOMES:
        return message
    home, value = _HOMES[name[1]], getattr(estimator, name[1])
    word = value.__name__ if isinstance(value, type) else value
    for public, kind in vars(importlib.import_module(home)).items():
        named = isinstance(word, str) and public.lower() == word.lower().replace("_", "")
        if named and isinstance(kind, type):
            return f"{message} Write {name[1]}={home}.{public}()."
    return message


def require_fitted_components(estimator) -> None:
    """Raise a ValueError if a component is no longer the one of the fit."""
    for name in _FITTED:
        given, fitted = getattr(estimator, name, None), getattr(estimator, f"{name}_")
        if not isinstance(given, Component):  # None, chosen for the first rows, or a torch module
            continue
        values = {name: (type(given).__name__, type(fitted).__name__)}
        if values[name][0] == values[name][1]:
            used = fitted.get_params(deep=False)
            values = {f"{name}__{k}": (v, used[k]) for k, v in given.get_params(deep=False).items()}
        for parameter, (now, then) in values.items():
            if isinstance(now, _PLAIN) and now != then:
                raise ValueError(
                    f"{parameter} is {now!r}, but was {then!r} in the fit that partial_fit goes on "
                    "from: set it back, or call fit."
                )
