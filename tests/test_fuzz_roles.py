"""Columns with a role, however a table holds them: one fit, or an error that names the column.

Hypothesis puts together a model, a table with given columns anywhere among the others (numbers, yes
and no, text, categories), how it is held (array, CSR, pandas, polars), how columns are named (by
name or place), weights, minibatches, and what spoils it. What is not spoiled fits as the same
numbers in a plain array with the given columns last do: to the last digit but for rounding.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import Polynomial
from skavi.models import (
    BayesianDecoder,
    ConditionalModel,
    FactorAnalysis,
    RandomEffects,
    TopicModel,
)
from skavi.solvers import Adam


class Lines(ConditionalModel):
    """A user's model: every column a line in the covariates, around a level of the row's own."""

    n_latents = 1

    def __init__(self, covariates=None):
        self.covariates = covariates

    def global_prior(self, n_features):
        return {"slope": Normal(torch.zeros(n_features), 1.0)}

    def local_prior(self, theta, covariates):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta, covariates):
        return Normal(z + covariates.sum(1, keepdim=True) * theta["slope"], 1.0)


#: name -> (model of the places of covariates, and of an offset; whether it reads counts)
MODELS = {
    "factors": (lambda c, o: FactorAnalysis(1, covariates=c, offset=o), False),
    "counts": (
        lambda c, o: FactorAnalysis(1, likelihood="poisson", covariates=c, offset=o),
        True,
    ),
    "effects": (lambda c, o: RandomEffects(covariates=c), False),
    "topics": (lambda c, o: TopicModel(2, covariates=c), True),
    "decoder": (lambda c, o: BayesianDecoder(1, (2,), weights="point", covariates=c), False),
    "lines": (lambda c, o: Lines(c), False),
}
#: Whose models take an offset, and CSR.
WITH_OFFSET, SPARSE = {"factors", "counts"}, {"topics"}
KINDS = ("numbers", "yes and no", "text", "categories")
SPOILED = ("a hole", "constant", "unknown level", "missing column", "other order", "infinite")


@dataclass
class Situation:
    """A table, and what is asked of it."""

    name: str
    columns: dict  # name -> values, in the table's order
    covariates: list  # names
    offset: str | None
    library: str
    by_name: bool
    weights: object
    amortized: bool
    solver: object
    spoiled: str | None

    def table(self, columns=None):
        columns = self.columns if columns is None else columns
        if self.library == "pandas":
            return pd.DataFrame(columns)
        if self.library == "polars":
            frame = pl.DataFrame({n: v.tolist() for n, v in columns.items()})
            levels = {n: v.categories for n, v in columns.items() if v.dtype.name == "category"}
            kinds = [pl.col(n).cast(pl.Enum(list(each))) for n, each in levels.items()]
            return frame.with_columns(kinds)
        array = np.column_stack([np.asarray(v) for v in columns.values()])
        return scipy.sparse.csr_array(array.astype(float)) if self.library == "CSR" else array

    def named(self, name):
        return name if self.by_name else list(self.columns).index(name)

    def estimator(self, covariates, offset):
        model = MODELS[self.name][0](covariates, offset)
        shared = {"random_state": 0, "max_iter": 3, "solver": self.solver}
        if self.amortized:
            return AmortizedVI(model, Polynomial(1), **shared)
        return FactorizedVI(model, **shared)


@st.composite
def situations(draw):
    name = draw(st.sampled_from(list(MODELS)))
    library = draw(st.sampled_from(["array", "pandas", "polars", *["CSR"] * (name in SPARSE)]))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    n, counts = draw(st.sampled_from([8, 13])), MODELS[name][1]
    d = 2 if name == "effects" else draw(st.sampled_from([2, 3]))
    own = {
        f"x{i}": rng.poisson(3.0, n).astype(float) if counts else rng.normal(size=n)
        for i in range(d)
    }
    if name == "effects":
        own["x1"] = rng.uniform(0.5, 2, n)
    kinds = KINDS if library in ("pandas", "polars") else KINDS[:2]
    given_columns = {
        f"c{i}": _column(draw(st.sampled_from(kinds)), n, rng)
        for i in range(draw(st.sampled_from([1, 2])))
    }
    offset = "offset" if name in WITH_OFFSET and draw(st.booleans()) else None
    others = dict(given_columns) | ({offset: 0.3 * rng.normal(size=n)} if offset else {})
    order = [*own, *others]
    for each in others:  # anywhere among the others, which keep their order
        order.remove(each)
        order.insert(draw(st.integers(0, len(order))), each)
    everything = own | others
    return Situation(
        name,
        {each: everything[each] for each in order},
        list(given_columns),
        offset,
        library,
        library in ("pandas", "polars") and draw(st.booleans()),
        draw(st.sampled_from([None, rng.uniform(0.5, 2, n)])),
        draw(st.booleans()),
        draw(st.sampled_from([None, None, Adam(batch_size=4)])),
        draw(st.sampled_from([None, None, *SPOILED])),
    )


def _column(kind, n, rng):
    """Return a given column of which both halves of the rows hold every value."""
    if kind == "numbers":
        return 5 + rng.normal(size=n)
    some = np.tile(["no", "yes", "maybe"], n)[:n] if kind != "yes and no" else np.arange(n) % 2 == 0
    if kind == "categories":
        return pd.Categorical(some, categories=["yes", "no", "maybe"])
    return some.astype(object) if kind == "text" else some


def canonical(situation):
    """Return the same numbers as a plain array, the given ones last, and the model for it."""
    own = [v for n, v in situation.columns.items() if n[0] == "x"]
    coded = [part for name in situation.covariates for part in _coded(situation, name)]
    last = [] if situation.offset is None else [situation.columns["offset"]]
    X = np.column_stack([np.asarray(each, dtype=float) for each in (*own, *coded, *last)])
    d, p = len(own), len(coded)
    places = list(range(d, d + p))
    return X, situation.estimator(places, d + p if last else None)


def _coded(situation, name):
    """Return a column's numbers: 0 and 1 for all levels but the first, of categories or letters."""
    values = situation.columns[name]
    if values.dtype.name == "category":
        levels = list(values.categories)
    elif values.dtype == object:
        levels = sorted(set(values))
    else:
        return [values]
    return [np.array([v == level for v in values.tolist()]) for level in levels[1:]]


def quiet(call, *arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call(*arguments, **keywords)


def check(situation):
    vi = situation.estimator(
        [situation.named(name) for name in situation.covariates],
        None if situation.offset is None else situation.named(situation.offset),
    )
    if situation.spoiled in ("a hole", "constant", "infinite"):
        check_refused(situation, vi)
        return
    table = situation.table()
    before = repr(table)
    quiet(vi.fit, table, sample_weight=situation.weights)
    assert repr(table) == before
    X, plain = canonical(situation)
    quiet(plain.fit, X, sample_weight=situation.weights)
    assert vi.elbo_ == pytest.approx(plain.elbo_, rel=1e-9)
    latents = quiet(vi.transform, table)
    np.testing.assert_allclose(latents, quiet(plain.transform, X), rtol=1e-6, atol=1e-7)
    assert vi.n_features_in_ == len(situation.columns)
    check_new_rows(situation, vi)


def check_refused(situation, vi):
    """A hole, an infinite number or a constant is refused by the column's name, before the fit."""
    name = situation.covariates[-1]
    values = situation.columns[name]
    if situation.spoiled == "constant":
        spoiled = values[[0] * len(values)]
    elif situation.spoiled == "infinite":
        spoiled = np.where(np.arange(len(values)) == 3, np.inf, 1.0 + np.arange(len(values)))
    elif values.dtype.kind in "fb":
        spoiled = np.where(np.arange(len(values)) == 3, np.nan, values.astype(float))
    else:
        spoiled = np.array([None if i == 3 else v for i, v in enumerate(values)], dtype=object)
    named = name if situation.library in ("pandas", "polars") else _place(situation, name)
    with pytest.raises(ValueError, match=rf"column '{named}'"):
        quiet(vi.fit, situation.table(situation.columns | {name: spoiled}))
    assert not hasattr(vi, "elbo_")


def _place(situation, name):
    return f"x{list(situation.columns).index(name)}"


def check_new_rows(situation, vi):
    """A level that the fit does not know, a column that is not there, another order: an error."""
    columns, name = dict(situation.columns), situation.covariates[-1]
    framed = situation.library in ("pandas", "polars")
    if situation.spoiled == "unknown level" and columns[name].dtype.kind not in "fb":
        columns[name] = np.array(["never"] * len(columns[name]), dtype=object)
        with pytest.raises(ValueError, match=rf"column '{name}' holds 'never'"):
            quiet(vi.transform, situation.table(columns))
    if situation.spoiled == "missing column":
        del columns[name]
        with pytest.raises(ValueError, match=name if framed else "features"):
            quiet(vi.transform, situation.table(columns))
    if situation.spoiled == "other order" and framed:
        turned = dict(reversed(columns.items()))
        with pytest.raises(ValueError, match="in the same order"):
            quiet(vi.transform, situation.table(turned))


def fuzz(n_examples, chance):
    @seed(chance)
    @settings(
        max_examples=n_examples,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(situations())
    def tried(situation):
        check(situation)

    tried()


def test_columns_with_a_role_fit_as_their_numbers_do():
    fuzz(12, 0)


@pytest.mark.nightly
@pytest.mark.parametrize("chance", range(1, 4))
def test_many_tables_fit_as_their_numbers_do(chance):
    fuzz(200, chance)
