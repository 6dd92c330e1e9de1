"""The base of all components: models, families, inference functions, noise rules, solvers."""

import math
from numbers import Integral, Real

import numpy as np
from sklearn.base import BaseEstimator

from skavi._platform.html import DOC_LINK_TEMPLATE


class Component(BaseEstimator):
    """Store the arguments of ``__init__`` and nothing else; `check` validates them at fit.

    Being a scikit-learn `BaseEstimator` gives ``get_params``, ``set_params``, ``clone`` and a repr.
    """

    _doc_link_module = "skavi"
    _doc_link_template = DOC_LINK_TEMPLATE

    def check(self):
        """Raise a ValueError or TypeError that names the first argument that is not usable."""

    def _require(self, name, condition, need):
        if not condition:
            value = getattr(self, name)
            raise ValueError(f"{type(self).__name__}({name}={value!r}): {name} must be {need}.")

    def _require_integer(self, name, minimum):
        value = getattr(self, name)
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(
                f"{type(self).__name__}({name}={value!r}): {name} must be an integer, "
                f"got {type(value).__name__}."
            )
        self._require(name, value >= minimum, f">= {minimum}")

    def _require_number(self, name):
        value = getattr(self, name)
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(
                f"{type(self).__name__}({name}={value!r}): {name} must be a number, "
                f"got {type(value).__name__}."
            )

    def _require_finite(self, name):
        self._require_number(name)
        self._require(name, math.isfinite(getattr(self, name)), "finite")

    def _require_positive(self, name):
        self._require_number(name)
        self._require(name, 0 < float(getattr(self, name)) < math.inf, "positive and finite")

    def _require_vector(self, name, positive=False):
        """Require None, a number or a one-dimensional array of numbers, finite (and positive)."""
        value = getattr(self, name)
        if value is None:
            return
        try:
            numbers = np.asarray(value, dtype=float)
        except (TypeError, ValueError):
            raise TypeError(
                f"{type(self).__name__}({name}={value!r}): {name} must be None, a number or an "
                f"array of numbers, got {type(value).__name__}."
            ) from None
        self._require(name, numbers.ndim <= 1, "a number, or an array of one dimension")
        fine = np.isfinite(numbers).all() and (not positive or (numbers > 0).all())
        self._require(name, fine, "positive and finite" if positive else "finite")
