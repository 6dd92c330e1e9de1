"""Which methods of a model its author has written, and which the fit cannot do without."""

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
