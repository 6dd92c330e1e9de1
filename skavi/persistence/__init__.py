"""Fitted estimators as files that cannot run code.

A file is one zip of a JSON header and plain arrays (`skavi._platform.archive`), with a checksum
over every byte. `load` creates only skavi's own classes; a model or network of your own is stored
by name, and you pass the object to `load`. Pickle, and so joblib, runs any code in a file: use it
only for files that you have written yourself.
"""

from os import PathLike
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.utils.validation import check_is_fitted

from skavi._estimators.base import VariationalInference
from skavi._platform.archive import DamagedFileError, read_archive, write_archive
from skavi._platform.forks_and_threads import guarded
from skavi._platform.user_warnings import warn
from skavi._platform.version import SavedVersionWarning, __version__
from skavi.families import Family
from skavi.inference_functions import InferenceFunction
from skavi.models import LatentVariableModel
from skavi.noise import Noise
from skavi.persistence._read import HandedInError, rebuild
from skavi.persistence._write import ESTIMATORS, describe
from skavi.solvers import Solver

__all__ = ["SavedVersionWarning", "load", "save"]

#: Version of the file format: raise it when an older skavi could not read the file.
SCHEMA = 1
_FORMAT = "skavi estimator"
#: Characters of what is said of a forged file, some of which it has chosen.
_LONGEST = 1000


@guarded
def save(estimator: VariationalInference, path: str | PathLike[str]) -> None:
    """Write a fitted estimator to a file that holds no code.

    Parameters
    ----------
    estimator : FactorizedVI or AmortizedVI
        Fitted.
    path : str or PathLike
        The file to write; an existing one is replaced only when the new one is complete.

    Raises
    ------
    TypeError
        If the estimator is of another class, or has a value that is not a number, a string, an
        array or a component, or that no fit leaves there; the message says which and where.
    ValueError
        If a parameter or component was set after the fit to what `fit` would refuse, or to another
        one than was fitted.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    OSError
        If the file cannot be written.

    Notes
    -----
    All parameters and fitted attributes are stored, to the last bit, including the state of a
    `RandomState`, an `init` estimator, and the output set by ``set_output``. Callbacks are not.
    Objects of your own classes (models, networks, ...) are stored by name, arguments and numbers,
    without their code: `load` needs an object of that class.

    Examples
    --------
    >>> import os, tempfile
    >>> import skavi
    >>> from skavi.models import LinearModel
    >>> vi = skavi.FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
    >>> path = os.path.join(tempfile.mkdtemp(), "fit.skavi")
    >>> skavi.save(vi, path)
    >>> skavi.load(path).elbo_ == vi.elbo_
    True
    """
    if type(estimator) not in ESTIMATORS.values():
        raise TypeError(
            f"estimator is a {type(estimator).__name__}: save writes {' and '.join(ESTIMATORS)}. "
            "Save the steps of a pipeline one by one, and of an Imputer its estimator_."
        )
    check_is_fitted(estimator, "elbo_")
    tree, arrays, needs = describe(estimator)
    header = {
        "format": _FORMAT,
        "schema": SCHEMA,
        "versions": {
            "skavi": __version__,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "torch": str(torch.__version__),
        },
        "needs": needs,
        "estimator": tree,
    }
    write_archive(path, header, arrays)


@guarded
def load(
    path: str | PathLike[str],
    model: LatentVariableModel | None = None,
    inference_function: InferenceFunction | torch.nn.Module | None = None,
    *,
    family: Family | None = None,
    global_family: Family | None = None,
    noise: Noise | None = None,
    solver: Solver | None = None,
) -> VariationalInference:
    """Read an estimator that `save` wrote; the file cannot contain code to run.

    Parameters
    ----------
    path : str or PathLike
        The file.
    model : LatentVariableModel, default=None
        Needed for a model of your own class: an object with the arguments of the saved one.
    inference_function : InferenceFunction or torch.nn.Module, default=None
        Likewise; a module must have the saved layers, and gets the weights of the file.
    family, global_family, noise, solver : object, default=None
        Likewise.

    Returns
    -------
    FactorizedVI or AmortizedVI
        With the parameters and all results of the saved one, to the last bit.

    Raises
    ------
    ValueError
        If the file is damaged, altered in any bit, not a saved estimator, or of a later format; if
        an object of your own class is needed (the message says which), or differs from the saved
        one.
    OSError
        If it cannot be read, or is not a regular file.

    Notes
    -----
    Before anything is made of a file, its names, types and sizes are compared with what a fit of
    its class leaves, and its model is evaluated once at the centre of q, so that a forged file gets
    an error here and not later. A file's noise rule may have about 16,000 nodes; one of more must
    be handed in.

    Warns
    -----
    SavedVersionWarning
        If another version of skavi wrote the file.

    Examples
    --------
    >>> import os, tempfile
    >>> import torch
    >>> import skavi
    >>> from skavi.models import LinearModel
    >>> network = torch.nn.Linear(1, 2, dtype=torch.float64)
    >>> vi = skavi.AmortizedVI(LinearModel(), network).fit([[0.0], [1.0], [5.0]])
    >>> path = os.path.join(tempfile.mkdtemp(), "fit.skavi")
    >>> skavi.save(vi, path)
    >>> other = skavi.load(path, inference_function=torch.nn.Linear(1, 2, dtype=torch.float64))
    >>> bool(other.score([[2.0]]) == vi.score([[2.0]]))
    True
    """
    handed_in = {
        "model": model,
        "inference_function": inference_function,
        "family": family,
        "global_family": global_family,
        "noise": noise,
        "solver": solver,
    }
    given = {role: value for role, value in handed_in.items() if value is not None}
    header, arrays = read_archive(path)
    _check_format(path, header)
    estimator = _rebuild(path, header, arrays, given)
    saved_version = header["versions"]["skavi"]
    if saved_version != __version__:
        name = type(estimator).__name__
        warn(SavedVersionWarning(path, name, saved_version))
    return estimator


def _check_format(path, header):
    """Refuse a file that is not a saved estimator, or that has a later format."""
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(
            f"{path} holds no saved estimator: skavi.load reads what skavi.save wrote."
        )
    schema, versions = header.get("schema"), header.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    if type(schema) is not int or schema < 1 or not isinstance(versions.get("skavi"), str):
        raise DamagedFileError(f"{path} does not say which version wrote it.")
    if schema > SCHEMA:
        raise ValueError(
            f"{path} has format {schema}, of skavi {versions['skavi']}, but this is skavi "
            f"{__version__}, which reads formats up to {SCHEMA}: upgrade skavi."
        )


def _rebuild(path, header, arrays, given: dict[str, Any]):
    try:
        return rebuild(header["estimator"], arrays, given)
    except HandedInError as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # whatever a forged tree makes Python, numpy or torch say
        said = f"{type(error).__name__}: {error}"
        said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]} ..."
        raise DamagedFileError(f"{path} is no estimator that skavi saved: {said}.") from error
