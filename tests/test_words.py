"""The commonest mistakes with every public argument: each is refused in plain words, or is fine.

A class instead of an object, a string instead of an object, a thing of a wrong kind, a number out
of range, NaN, and None where it may not be. A message names the argument, what was got, and what is
needed; it holds no private path and no address.
"""

import inspect
import re
import warnings

import numpy as np
import pytest

from skavi import (
    AmortizedVI,
    FactorizedVI,
    Imputer,
    callbacks,
    families,
    inference_functions,
    models,
    noise,
    solvers,
)
from skavi._component import Component
from skavi._estimators.component_names import with_public_names
from skavi._fit.suboptimality import nats_below
from skavi._platform.shown_values import shown

X = np.abs(np.random.default_rng(0).normal(size=(12, 3)))
COUNTS = np.random.default_rng(0).poisson(2.0, size=(12, 3))


class Nothing:
    """Of no use as an argument."""

    def __call__(self, *arguments):
        raise TypeError("Nothing is no function.")


CLASSES = {
    "model": models.FactorAnalysis,
    "solver": solvers.Adam,
    "noise": noise.MonteCarlo,
    "family": families.DiagonalNormal,
    "global_family": families.FullNormal,
    "inference_function": inference_functions.MLP,
}
MISTAKES = {
    "a class": lambda name: CLASSES.get(name, Nothing),
    "a string": lambda name: "adam",
    "another kind": lambda name: Nothing(),
    "negative": lambda name: -1,
    "NaN": lambda name: float("nan"),
    "None": lambda name: None,
}
#: What each class is tried on: the way in which it is used, and the rows.
ROWS = {
    models.LinearModel: X[:, :1],
    models.NonlinearModel: X[:, :1],
    models.SawTimeSeries: X[:, :1],
    models.LocalLevel: X[:, :1],
    models.GaussianProcess: X[:, :1],
    models.RandomEffects: X[:, :2],
    models.TopicModel: COUNTS,
}
#: Classes whose other arguments a call needs.
NEEDED = {
    callbacks.Checkpoint: {"path": "unused"},
    inference_functions.TorchFunction: {"module": inference_functions.MLP()},
}
#: Arguments of several meanings, of which a mistake is one, and what a user would find instead.
FINE = {
    ("Checkpoint", "path", "a string"),
    ("Adam", "schedule", "another kind"),  # a callable, whose own error is the user's
    ("Adam", "schedule", "a class"),
}
NOT_FOR_USERS = {"ElboLog", "TorchFunction", "Tabular", "Table"}


#: What no message holds: private paths, reprs of classes, addresses.
PRIVATE = r"\b_\w+\.|\._\w|<class|0x[0-9a-f]{4}|sklearn\.utils"


def _public(module):
    names = getattr(module, "__all__", None) or dir(module)
    found = [vars(module)[name] for name in names if not name.startswith("_")]
    ours = [c for c in found if inspect.isclass(c) and c.__module__.startswith("skavi")]
    ours = [c for c in ours if not inspect.isabstract(c) and c.__name__ not in NOT_FOR_USERS]
    return [c for c in ours if module is callbacks or issubclass(c, Component)]


def _attempts():
    classes = [FactorizedVI, AmortizedVI, Imputer]
    for module in (models, inference_functions, families, solvers, noise, callbacks):
        classes += sorted(_public(module), key=lambda c: c.__name__)
    for cls in dict.fromkeys(classes):
        for name in inspect.signature(cls).parameters:
            if name not in ("args", "kwargs"):
                yield pytest.param(cls, name, id=f"{cls.__name__}-{name}")


def _check(cls, name, value):
    """Use an argument as far as a fit checks it."""
    made = cls(**{**NEEDED.get(cls, {}), name: value})
    if isinstance(made, Imputer):
        made.fit(X)
    elif isinstance(made, FactorizedVI | AmortizedVI):
        made.fit(X) if name in ("device", "init") else made._validate_params()
    elif isinstance(made, Component):
        made.check()
        if isinstance(made, models.LatentVariableModel):
            made.check_roles()
    elif isinstance(made, callbacks.EarlyStopping):
        FactorizedVI(models.FactorAnalysis(1), max_iter=2).set_callbacks(made).fit(X)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("cls", "name"), list(_attempts()))
def test_a_mistake_is_refused_in_plain_words_or_is_none(cls, name):
    default = inspect.signature(cls).parameters[name].default
    for mistake, of in MISTAKES.items():
        value = of(name)
        try:
            _check(cls, name, value)
        except (ValueError, TypeError) as error:
            message = " ".join(str(error).split())
        else:
            allowed = mistake in ("negative", "NaN", "None", "a string")
            assert allowed or (cls.__name__, name, mistake) in FINE, f"{mistake} is accepted"
            assert not (mistake == "None" and isinstance(default, int | float)), "None is accepted"
            continue
        assert name in message, message
        got = [shown(value), type(value).__name__, "NaN", "negative"]
        assert any(each in message for each in got), message
        assert not re.search(r"\b_\w+\.|\._\w|<class|0x[0-9a-f]{4}|sklearn\.utils", message), (
            message
        )
        assert len(message) < 700 and message.endswith((".", ")")), message


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_string_instead_of_an_object_lists_the_choices(name):
    cls = AmortizedVI if name == "inference_function" else FactorizedVI
    chosen = CLASSES[name].__name__
    for mistake in (chosen.lower(), CLASSES[name]):
        with pytest.raises(ValueError, match=rf"Write {name}=skavi\.\w+\.{chosen}\(\)\.$") as error:
            cls(**{name: mistake}).fit(X)
        assert f"{chosen}()" in str(error.value).partition(" Got ")[0]


def test_other_messages_of_scikit_learn_pass():
    assert with_public_names(FactorizedVI(), "Something else.") == "Something else."


def test_no_distance_is_infinite():
    for left in (np.inf, np.nan):
        assert nats_below(left) == "an unknown distance below"


def test_values_are_shown_on_a_line():
    assert shown(np.arange(5000)).startswith("array([ 0, 1, 2, ..., 4997")
    assert shown(len) == "the function len" and shown("a\nb") == repr("a\nb")
    assert shown(Nothing()) == "an object of class Nothing"


def test_warnings_of_unfinished_fits_name_no_infinity():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FactorizedVI(models.NonlinearModel(), max_iter=1, n_init=1).fit(X[:, :1])
    assert caught and not any("inf" in str(w.message).split() for w in caught)
