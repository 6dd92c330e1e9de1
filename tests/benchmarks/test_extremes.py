"""Tables of extreme numbers (benchmarks/extremes.py): a right fit, or one sentence."""

import numpy as np
import pytest

from benchmarks import extremes

#: Models whose fits take a second or two.
QUICK = ["normal isotropic", "normal diagonal", "RandomEffects", "LocalLevel", "LocalLevel known"]
COUNTS = ["poisson", "negative_binomial isotropic", "negative_binomial diagonal"]
REFUSED = ["x 1e8", "+ 1e9", "cell 1e9", "outlier 1e8", "x 1e150"]


def check(model, table, estimator="F-VI"):
    record = extremes.run(model, estimator, table)
    assert record.verdict.startswith(("right", "sentence", "warned")), record
    return record


@pytest.mark.parametrize("model", COUNTS)
@pytest.mark.parametrize("table", REFUSED)
@pytest.mark.parametrize("estimator", list(extremes.ESTIMATORS))
def test_counts_beyond_a_likelihood_are_refused_before_any_work(model, table, estimator):
    record = check(model, table, estimator)
    assert record.verdict == "sentence"
    assert record.seconds < 1.0
    assert record.n_iter == 0


@pytest.mark.parametrize("table", ["all zero", "a zero column", "x 1e-12"])
@pytest.mark.parametrize("model", COUNTS[1:])
def test_columns_of_zeros_are_refused_by_name_where_they_tell_nothing(model, table):
    assert "columns of zeros (first column 0)" in check(model, table).said


@pytest.mark.nightly
@pytest.mark.parametrize("table", list(extremes.TABLES))
@pytest.mark.parametrize("model", QUICK)
def test_fits_to_extreme_numbers_are_right_or_say_why_not(model, table):
    check(model, table)


def test_a_wrong_fit_is_found(monkeypatch):
    """The judge is not blind: an ELBO below that of the plain table's, shifted, is wrong."""
    shuffled = np.random.default_rng(0).permuted
    monkeypatch.setitem(extremes.TABLES, "x 10", lambda X: shuffled(10.0 * X, axis=0))
    assert extremes.run("normal isotropic", "F-VI", "x 10").verdict.startswith("WRONG")


def test_a_fit_beyond_the_limit_is_stopped(monkeypatch):
    monkeypatch.setattr(extremes, "LIMIT", 0.05)
    assert extremes.run("negative_binomial isotropic", "F-VI", "plain").verdict == "SLOW"
