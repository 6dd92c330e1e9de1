"""Components as users name them: in errors about their kind, and against those of a fit."""

import importlib
import re

from skavi._component import Component
from skavi._platform.shown_values import shown

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
    """Return scikit-learn's message about a parameter in the words of this library.

    Its sentence stays: The 'solver' parameter of FactorizedVI must be ... Got ... instead. What is
    needed is named by what a user writes, and what was got without addresses.
    """
    name = re.match(r"The '(\w+)' parameter of (\w+) must be ", message)
    if name is None:
        return message
    value, needed = getattr(estimator, name[1]), _NEEDED.get(name[1])
    if name[1] in _HOMES:
        needed = _choices(name[1])
    if needed is None:
        needed = message[name.end() :].partition(". Got ")[0]
    sentence = f"{name[0]}{needed}. Got {shown(value)} instead."
    return f"{sentence}{_advice(name[1], value)}"


#: What else is needed, in plain words: scikit-learn's name types and intervals.
_NEEDED = {
    "device": 'a str such as "cpu", "cuda" or "auto", or a torch.device',
    "init": "a fitted FactorizedVI or AmortizedVI, or None",
    "max_iter": "an integer >= 1",
    "n_init": "an integer >= 1, or None",
    "output": 'a str, "mean" or "mean_sd"',
    "refine": "a number > 0, in nats, or None",
    "random_state": "an integer from 0 to 4294967295, a numpy.random.RandomState, or None",
    "tol": "a number > 0, in nats a row, or None",
    "verbose": "an integer >= 0, or True or False",
    "warm_start": "True or False",
}
#: Classes that estimators choose themselves, and nobody writes.
_CHOSEN_ALONE = ("Table", "TorchFunction")
#: Kinds of components whose objects are no `Component`s of ours.
_OTHERS = {"inference_function": "a torch.nn.Module", "model": "one of your own"}


def _public_classes(name):
    """Return what a user may write for a component, by name."""
    home = importlib.import_module(_HOMES[name])
    found = {each: vars(home)[each] for each in getattr(home, "__all__", None) or dir(home)}
    ours = {
        each: kind
        for each, kind in sorted(found.items())
        if isinstance(kind, type) and issubclass(kind, Component) and not each.startswith("_")
    }

    def is_base(kind):  # to subclass
        return any(other is not kind and issubclass(other, kind) for other in ours.values())

    return {e: kind for e, kind in ours.items() if not is_base(kind) and e not in _CHOSEN_ALONE}


def _choices(name):
    """Say what a component may be."""
    own = [f"{each}()" for each in _public_classes(name)]
    others = [_OTHERS[name]] if name in _OTHERS else []
    return f"an object of {_HOMES[name]} ({', '.join([*own, *others])}), or None"


def _advice(name, value):
    """Say what to write in place of the name of a component's class, or the class itself."""
    if name not in _HOMES:
        return ""
    word = value.__name__ if isinstance(value, type) else value
    for public in _public_classes(name):
        if isinstance(word, str) and public.lower() == word.lower().replace("_", ""):
            return f" Write {name}={_HOMES[name]}.{public}()."
    of_users = isinstance(value, type) and issubclass(value, Component)
    return f" Write {name}={word}(...), an object of it." if of_users else ""


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
