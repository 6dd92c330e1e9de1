"""Variational inference for latent variable models in scikit-learn, factorized or amortized."""

import importlib
from typing import TYPE_CHECKING

from skavi._platform import fork_record as _fork_record  # noqa: F401  it begins with the import

if TYPE_CHECKING:
    from skavi import distributed
    from skavi._estimators.amortized import AmortizedVI
    from skavi._estimators.factorized import FactorizedVI
    from skavi._estimators.imputer import Imputer
    from skavi._platform.show_versions import show_versions
    from skavi._platform.version import __version__
    from skavi.closability import can_close_gap
    from skavi.diagnostics.gap import amortization_gap
    from skavi.persistence import load, save

__all__ = [
    "AmortizedVI",
    "FactorizedVI",
    "Imputer",
    "__version__",
    "amortization_gap",
    "can_close_gap",
    "distributed",
    "load",
    "save",
    "show_versions",
]

# A name is imported when it is first asked for: torch and scikit-learn, which itself loads pandas
# and rich, take seconds, and `python -m skavi --help` needs none of them.
_MODULE_OF = {
    "AmortizedVI": "skavi._estimators.amortized",
    "FactorizedVI": "skavi._estimators.factorized",
    "Imputer": "skavi._estimators.imputer",
    "__version__": "skavi._platform.version",
    "amortization_gap": "skavi.diagnostics.gap",
    "can_close_gap": "skavi.closability",
    "load": "skavi.persistence",
    "save": "skavi.persistence",
    "show_versions": "skavi._platform.show_versions",
}
_MODULES = {
    "callbacks",
    "closability",
    "diagnostics",
    "displays",
    "distributed",
    "distributions",
    "families",
    "inference_functions",
    "models",
    "noise",
    "objective",
    "persistence",
    "posterior",
    "solvers",
}


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"skavi.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'skavi' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_MODULE_OF, *_MODULES})
