"""The base of all components: models, families, inference functions, noise rules, solvers."""

import copy
import math
from numbers import Integral, Real

import numpy as np
from sklearn.base import BaseEstimator

from skavi._platform.html import DOC_LINK_TEMPLATE
from skavi._platform.shown_values import kind_of, shown

#: Scales are squared, and divided by: beyond these a square is 0 or infinite in float64.
_LEAST_SCALE = 1e-150


class Component(BaseEstimator):
    """Store the arguments of ``__init__`` and nothing else; `check` validates them at fit.

    Being a scikit-learn `BaseEstimator` gives ``get_params``, ``set_params``, ``clone`` and a repr.
    """

    _doc_link_module = "skavi"
    _doc_link_template = DOC_LINK_TEMPLATE

    #: What a fit may leave on the object beside its arguments; a saved file may hold no more.
    learned: tuple[str, ...] = ()

    def get_params(self, deep=True):
        """Return the arguments, those of components in them too if `deep`."""
        for name in self._get_param_names():
            if not hasattr(self, name):
                raise AttributeError(
                    f"{type(self).__name__}.__init__ takes {name!r}, but does not keep it under "
                    f"this name: write self.{name} = {name} in it."
                )
        return super().get_params(deep)

    def check(self):
        """Raise a ValueError or TypeError that names the first argument that is not usable."""

    def check_learned(self, n_features: int):
        """Raise an error that names the first of `learned` that no fit to n_features leaves."""

    def with_arguments(self, arguments: dict):
        """Return a copy with other arguments, and all that a fit has left on it."""
        other = copy.copy(self)
        for name, value in arguments.items():
            setattr(other, name, value)
        return other

    def _got(self, name):
        """Return an argument as messages begin with it."""
        return f"{type(self).__name__}({name}={shown(getattr(self, name))})"

    def _require(self, name, condition, need):
        if not condition:
            raise ValueError(f"{self._got(name)}: {name} must be {need}.")

    def _require_integer(self, name, minimum):
        value = getattr(self, name)
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{self._got(name)}: {name} must be an integer, got {kind_of(value)}.")
        self._require(name, value >= minimum, f">= {minimum}")

    def _require_number(self, name):
        value = getattr(self, name)
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{self._got(name)}: {name} must be a number, got {kind_of(value)}.")

    def _require_finite(self, name):
        self._require_number(name)
        self._require(name, math.isfinite(getattr(self, name)), "finite")
        within = abs(float(getattr(self, name))) <= 1 / _LEAST_SCALE
        self._require(name, within, "a number whose square is finite")

    def _require_positive(self, name):
        self._require_number(name)
        value = float(getattr(self, name))
        self._require(name, 0 < value < math.inf, "positive and finite")
        within = _LEAST_SCALE <= value <= 1 / _LEAST_SCALE
        self._require(name, within, "a number whose square is neither 0 nor infinite")

    def _require_vector(self, name, positive=False):
        """Require None, a number or a one-dimensional array of numbers, finite (and positive)."""
        value = getattr(self, name)
        if value is None:
            return
        try:
            numbers = np.asarray(value, dtype=float)
        except (TypeError, ValueError):
            raise TypeError(
                f"{self._got(name)}: {name} must be None, a number or "
                f"an array of numbers, got {kind_of(value)}."
            ) from None
        self._require(name, numbers.ndim <= 1, "a number, or an array of one dimension")
        fine = np.isfinite(numbers).all() and (not positive or (numbers > 0).all())
        self._require(name, fine, "positive and finite" if positive else "finite")
        sizes = np.abs(numbers)
        within = (sizes <= 1 / _LEAST_SCALE).all() and (
            not positive or (sizes >= _LEAST_SCALE).all()
        )
        neither = "neither 0 nor infinite" if positive else "finite"
        self._require(name, within, f"numbers whose squares are {neither}")

    def _require_size(self, name, n_features):
        """Require None, one number, or one a feature."""
        size = np.size(getattr(self, name))
        if size not in (1, n_features):
            raise ValueError(
                f"{type(self).__name__}({name}=...): {name} has {size} numbers, but X has "
                f"{n_features} features: give one number, or one a feature."
            )

    def _require_learned(self, name, shape, positive=False):
        """Require finite (and positive) floats; None in `shape` stands for any size but zero."""
        value = getattr(self, name)
        is_array = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        self._require(name, is_array and value.ndim == len(shape), f"floats of shape {shape}")
        fits = all(
            n and n == (n if m is None else m) for n, m in zip(value.shape, shape, strict=True)
        )
        self._require(name, fits, f"floats of shape {shape}")
        fine = np.isfinite(value).all() and (not positive or (value > 0).all())
        self._require(name, fine, "positive and finite" if positive else "finite")
