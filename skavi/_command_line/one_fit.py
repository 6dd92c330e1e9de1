"""One fit of one model to all rows of a table, and what the command writes of it."""

import importlib.util
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from skavi._command_line.table import Table, TableError
from skavi._command_line.table_files import columns_as_bytes, filled_as_bytes
from skavi._estimators.amortized import AmortizedVI
from skavi._estimators.factorized import FactorizedVI
from skavi._fit.defaults import default_model
from skavi.models import (
    BayesianDecoder,
    FactorAnalysis,
    HiddenMarkovModel,
    LatentVariableModel,
    MixedEffects,
    MixtureModel,
    TopicModel,
)
from skavi.persistence import save


def model_of(arguments, table: Table, names: dict[str, str | int]) -> LatentVariableModel:
    """Return the model that the options ask for, checked.

    Parameters
    ----------
    arguments : Namespace
    table : Table
    names : dict of str to (str or int)
        How X calls the columns that options name: by name, or by place.
    """
    kind = arguments.model or "factor-analysis"
    given: dict[str, Any] = {}
    if arguments.likelihood is not None:
        given["likelihood"] = arguments.likelihood
    if arguments.covariates:
        role = "fixed" if kind == "mixed-effects" else "covariates"
        given[role] = [names[each] for each in arguments.covariates]
    model = _MAKERS[kind](arguments, table, names, given)
    model.check()
    return model


def _factor_analysis(arguments, table, names, given):
    n_components = arguments.components
    normal = arguments.likelihood in (None, "normal", "student_t")
    if n_components is None and normal:
        explained = [c for c in table.columns if c not in arguments.covariates]
        at = [table.columns.index(each) for each in explained]
        X = torch.as_tensor(table.X[:, at])
        n_components = default_model(X, X.new_ones(len(X)), "diagonal").n_components
    sized = {} if n_components is None else {"n_components": n_components}
    noise = {"noise": "diagonal"} if normal else {}  # which the others do not have
    return FactorAnalysis(**noise, **sized, **given)


def _sized(kind: Callable[..., LatentVariableModel], size: str):
    def make(arguments, table, names, given):
        sized = {} if arguments.components is None else {size: arguments.components}
        return kind(**sized, **given)

    return make


def _hidden_markov(arguments, table, names, given):
    series = {} if arguments.groups is None else {"series": names[arguments.groups]}
    return _sized(HiddenMarkovModel, "n_states")(arguments, table, names, given | series)


def _mixed_effects(arguments, table, names, given):
    return MixedEffects(names[arguments.response], names[arguments.groups], **given)


_MAKERS: dict[str, Callable[..., LatentVariableModel]] = {
    "factor-analysis": _factor_analysis,
    "decoder": _sized(BayesianDecoder, "n_components"),
    "topics": _sized(TopicModel, "n_components"),
    "mixture": _sized(MixtureModel, "n_components"),
    "hidden-markov": _hidden_markov,
    "mixed-effects": _mixed_effects,
}


def estimator_of(arguments, model, verbose):
    """Return the estimator that the options ask for."""
    kind = AmortizedVI if arguments.amortized else FactorizedVI
    return kind(model, random_state=arguments.seed, verbose=verbose)


# --- the table as an estimator takes it -----------------------------------------------------------


def as_input(table: Table, labels: Sequence[str]) -> tuple[Any, dict[str, str | int]]:
    """Return X, and how it calls the columns that options name.

    A data frame where pandas is installed, so that a saved fit knows its columns by name; else an
    array, whose columns have places.

    Parameters
    ----------
    table : Table
    labels : sequence of str
        Columns that are labels, even if they are numbers.
    """
    columns: dict[str, Any] = dict(zip(table.columns, table.X.T, strict=True))
    if len(columns) < len(table.columns):
        if table.named:
            raise TableError("Two columns have one name: give each its own to name some.")
        return table.X, {}
    texts = {n: cells for n, cells in table.named.items() if n in labels or n not in columns}
    columns |= {name: np.array([c.strip() for c in texts[name]], dtype=object) for name in texts}
    if importlib.util.find_spec("pandas") is not None:
        import pandas

        return pandas.DataFrame(columns), {name: name for name in columns}
    if not texts:
        return table.X, {name: place for place, name in enumerate(columns)}
    X = np.column_stack([values.astype(object) for values in columns.values()])
    return X, {name: place for place, name in enumerate(columns)}


# --- what is written ------------------------------------------------------------------------------


def latents_as_bytes(path, estimator, X, groups: str | None) -> bytes:
    """Return the rows' latents, or the groups', as the content of a table's file.

    Means and standard deviations; of states, their probabilities and the most probable one.
    """
    posterior = estimator.posterior(X)
    names = list(map(str, posterior.names))
    columns: list[tuple[str, Any]] = []
    if posterior.groups is not None and len(posterior.groups) == len(posterior.mean):
        columns.append((groups or "group", [str(label) for label in posterior.groups]))
    columns += list(zip(names, posterior.mean.T, strict=True))
    if hasattr(posterior, "most_probable"):
        columns.append(("most_probable", [names[k] for k in posterior.most_probable]))
    else:
        columns += [(f"{n}_sd", sd) for n, sd in zip(names, posterior.sd.T, strict=True)]
    return columns_as_bytes(path, columns)


def imputed_as_bytes(path, estimator, X, table: Table) -> bytes:
    """Return the table with its missing cells filled, as the content of a file."""
    found = np.asarray(estimator.impute(X))
    places = list(X.columns) if hasattr(X, "columns") else range(found.shape[1])
    at = {name: i for i, name in enumerate(places)}
    filled = table.X.copy()
    for place, name in enumerate(table.columns):
        missing = np.isnan(table.X[:, place])
        column = at[name] if hasattr(X, "columns") else place
        filled[missing, place] = found[missing, column].astype(float)
    return filled_as_bytes(path, table, filled)


def saved_as_bytes(estimator) -> bytes:
    """Return the fit as the content of a file that `skavi.load` opens."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "fit.skavi")
        save(estimator, path)
        with open(path, "rb") as file:
            return file.read()


def figure_as_bytes(kind: str, estimator, X, title: str) -> bytes:
    """Return a picture of what the model is fitted for, in one of matplotlib's formats."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    _draw(estimator, X, figure)
    figure.suptitle(title, parse_math=False, fontsize="medium")
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=110)
    return file.getvalue()


def _draw(estimator, X, figure):
    from skavi import displays

    model = estimator.model_
    if isinstance(model, TopicModel):
        displays.TopicWordsDisplay.from_estimator(estimator, X=X, figure=figure)
        return
    axes = figure.subplots()
    if isinstance(model, MixedEffects):
        displays.GroupEffectsDisplay.from_estimator(estimator, X, ax=axes)
    elif isinstance(model, MixtureModel) and X.shape[1] > 1:
        features = list(X.columns[:2]) if hasattr(X, "columns") else (0, 1)
        displays.MixtureDisplay.from_estimator(estimator, X, features=features, ax=axes)
    elif isinstance(model, MixtureModel | HiddenMarkovModel):
        _draw_states(estimator.posterior(X), axes)
    else:
        displays.LatentPosteriorDisplay.from_estimator(estimator, X, ax=axes)


def _draw_states(posterior, axes):
    """Draw the probabilities of the rows' states on top of each other, in the order of the rows."""
    from skavi.displays._axes import colour

    names = posterior.names
    colours = [colour(k) for k in range(len(names))]
    rows = np.arange(len(posterior.mean))
    axes.stackplot(rows, posterior.mean.T, labels=names, colors=colours, step="mid")
    axes.set(xlabel="row", ylabel="probability of each state", ylim=(0, 1))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
