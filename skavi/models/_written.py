"""Which methods of a model its author has written, and which the fit cannot do without."""

import inspect
from functools import wraps


def left_open(method):
    """Mark a method that a model need not have; calling it then says that it is not there."""

    @wraps(method)
    def missing(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} does not define {method.__name__}.")

    missing.left_open = True  # type: ignore[attr-defined]  # a function takes any attribute
    return missing


def is_written(model, name: str) -> bool:
    """Say whether a model has a method, or an attribute, of which its base only has the name."""
    return name in vars(model) or not getattr(getattr(type(model), name), "left_open", False)


def require_written(model, name: str, need: str) -> None:
    """Raise a TypeError unless a model has the method `name`; say what is needed."""
    if not is_written(model, name):
        raise TypeError(f"{type(model).__name__} does not define {name}: {need}.")


#: The first arguments of methods; what follows depends on what the model is given.
_FIRST = {
    "global_prior": ["n_features"],
    "n_latents": ["n_features"],
    "local_prior": ["theta"],
    "likelihood": ["z", "theta"],
    "log_likelihood": ["theta", "z"],
}


def check_signatures(model) -> None:
    """Raise a TypeError for a method that lacks a first argument, or takes z and theta in turn."""
    for name, first in _FIRST.items():
        method = vars(type(model)).get(name)
        if not inspect.isfunction(method):
            continue
        parameters = inspect.signature(method).parameters
        names = list(parameters)[1:]
        open_ended = any(each.kind is each.VAR_POSITIONAL for each in parameters.values())
        missing = len(names) < len(first) and not open_ended
        if missing or (len(first) == 2 and names[:2] == first[::-1]):
            needed = ", ".join([*first, *names[2:]])
            raise TypeError(
                f"{type(model).__name__}.{name} takes ({', '.join(names)}), but is called with "
                f"({needed}): write def {name}(self, {needed})."
            )
