import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse

from skavi._data.column_roles import ALL_EXPLAINED, ColumnRoles, are_columns, find_columns


def frame(library=pd):
    return library.DataFrame(
        {
            "site": ["b", "a", "c", "a"],
            "x": [1.0, 2.0, 3.0, 4.0],
            "age": [30, 40, 50, 60],
            "y": [0.5, 0.1, 0.2, 0.3],
            "treated": [True, False, True, True],
        }
    )


def found(X=None, columns=("age", "site"), **kwargs):
    X = frame() if X is None else X
    return find_columns(X, {"covariates": tuple(columns)}, "Model", **kwargs)


@pytest.mark.parametrize("library", [pd, pl])
def test_columns_of_a_frame_are_taken_by_name_and_encoded(library):
    X = frame(library)
    roles = found(X)
    explained, given = roles.rows(X, "Model")
    assert list(explained.columns) == ["x", "y", "treated"]
    assert roles.labels("covariates") == ["age", "site_b", "site_c"]
    np.testing.assert_array_equal(given, [[30, 1, 0], [40, 0, 0], [50, 0, 1], [60, 0, 0]])
    assert (roles.row_width(5), roles.n_explained(5), roles.width) == (6, 3, 3)
    assert roles.slice("covariates", 6) == slice(3, 6)


def test_columns_of_an_array_are_taken_by_place():
    X = np.arange(12.0).reshape(3, 4)
    roles = found(X, [-1, 0])
    explained, given = roles.rows(X, "Model")
    np.testing.assert_array_equal(explained, X[:, 1:3])
    np.testing.assert_array_equal(given, X[:, [3, 0]])
    sparse, given = roles.rows(scipy.sparse.csr_array(X), "Model")
    np.testing.assert_array_equal(sparse.toarray(), X[:, 1:3])
    np.testing.assert_array_equal(given, X[:, [3, 0]])


def test_levels_of_a_categorical_column_are_those_present_in_its_own_order():
    X = frame()
    X["site"] = pd.Categorical(X["site"], categories=["c", "b", "d", "a"])
    assert found(X, ["site"]).labels("covariates") == ["site_b", "site_a"]
    assert found(X, ["site"], alone=False).labels("covariates") == ["site_b", "site_d", "site_a"]
    own_order = frame(pl).with_columns(pl.col("site").cast(pl.Enum(["c", "b", "d", "a"])))
    assert found(own_order, ["site"]).labels("covariates") == ["site_b", "site_a"]
    undeclared = frame(pl).with_columns(pl.col("site").cast(pl.Categorical))
    assert found(undeclared, ["site"]).labels("covariates") == ["site_b", "site_c"]
    numbers = X.assign(site=pd.Categorical([3, 1, 2, 1]))  # categories may well be numbers
    assert found(numbers, ["site"]).labels("covariates") == ["site_2", "site_3"]


@pytest.mark.parametrize(
    ("change", "columns", "error", "message"),
    [
        ({}, ["agee"], ValueError, "X has no column 'agee'; it has 'site', 'x'"),
        ({}, [7], ValueError, "no column 7; it has 5"),
        ({"age": 3}, ["age"], ValueError, "column 'age' is constant"),
        ({"site": "a"}, ["site"], ValueError, "column 'site' is constant"),
        ({"age": [1, np.nan, 2, 3]}, ["age"], ValueError, "'age' has 1 cells that are missing"),
        ({"site": ["a", None, "b", "b"]}, ["site"], ValueError, "'site' has 1 missing"),
        ({"age": pd.Timestamp("2020-01-01")}, ["age"], TypeError, "'age' is not numeric"),
        ({}, list(frame().columns), ValueError, "every column of X is given"),
    ],
)
def test_errors_name_the_column(change, columns, error, message):
    with pytest.raises(error, match=message):
        found(frame().assign(**change), columns)


def test_errors_of_names_without_a_frame_and_of_two_roles():
    with pytest.raises(ValueError, match="X has no column names"):
        found(np.eye(4), ["age"])
    with pytest.raises(ValueError, match="in covariates and in offset: a column has one role"):
        find_columns(np.eye(4), {"covariates": (0,), "offset": (-4,)}, "Model")
    with pytest.raises(TypeError, match="whose levels a part of the table does not tell"):
        found(alone=False)


def test_trials_are_numbers_and_may_be_constant():
    """Read as categories, two numbers of trials would become 0 and 1 of them."""
    table = pd.DataFrame({"yes": [1, 0, 1], "n": [4, 4, 4]})
    assert find_columns(table, {"trials": ("n",)}, "Model").given["trials"][0].levels == ()
    for of_categories in (table.astype({"n": "category"}), table.assign(n=["4", "5", "6"])):
        with pytest.raises(TypeError, match=r"column 'n' (holds categories|is not numeric)"):
            find_columns(of_categories, {"trials": ("n",)}, "Model")


def test_rows_after_the_fit_need_known_levels_and_numbers():
    roles = found()
    with pytest.raises(ValueError, match="holds 'z', but the fit knows only 'a', 'b', 'c'"):
        roles.rows(frame().assign(site="z"), "Model")
    with pytest.raises(TypeError, match="'age' is not numeric"):
        roles.rows(frame().assign(age="old"), "Model")


@pytest.mark.parametrize("library", [pd, pl])
def test_text_that_is_to_be_explained_is_named(library):
    roles = found(frame(library), ["age"])
    advice = r"Model: column 'site' holds 'b' in row 0, .* make yes and no 1 and 0"
    with pytest.raises(ValueError, match=advice):
        roles.rows(frame(library), "Model")
    table = np.array([[1, 30, "2.5"], [None, 40, "?"]], dtype=object)
    with pytest.raises(ValueError, match=r"column 2 holds '\?' in row 1"):
        found(table, [1]).rows(table, "Model")


def test_given_columns_alone():
    roles = found()
    rows = [[30, 1, 0]]
    np.testing.assert_array_equal(roles.apart([[30, "b"]], "covariates", "Model"), rows)
    np.testing.assert_array_equal(roles.apart(frame()[:1], "covariates", "Model"), rows)
    with pytest.raises(ValueError, match=r"covariates has shape \(1, 1\), but needs 2 columns"):
        roles.apart([[30]], "covariates", "Model")


@pytest.mark.parametrize("value", [None, "age", 3, -1, ["age", 2], ()])
def test_what_may_name_columns(value):
    assert are_columns(value)


@pytest.mark.parametrize("value", [1.5, ["age", "age"], [[1]], True, {"a": None, 2.0: 1}])
def test_what_may_not(value):
    assert not are_columns(value)


def test_plain_data_say_the_same_and_nothing_else_is_read():
    roles = found()
    assert ColumnRoles.from_plain(roles.to_plain()) == roles
    for forged in (
        None,
        {},
        roles.to_plain() | {"n_columns": 1},
        roles.to_plain() | {"more": 1},
        {"n_columns": 5, "given": {"covariates": [[0, "a", ["x"]]]}},
        {"n_columns": 5, "given": {"covariates": [[-1, "a", []]]}},
        {"n_columns": 5, "given": {"covariates": [[0, 1, []]]}},
    ):
        with pytest.raises(ValueError, match="names no columns as a fit does"):
            ColumnRoles.from_plain(forged)


def test_without_roles_every_column_is_explained():
    assert (ALL_EXPLAINED.row_width(7), ALL_EXPLAINED.n_explained(7)) == (7, 7)
