"""benchmarks/factor_analysis.py: that it runs, and what it calls kept."""

import numpy as np
import pytest

from benchmarks import factor_analysis


def test_a_table_is_fitted_by_both(capsys):
    result = factor_analysis.main(["one column"])["one column"]
    assert result["converged"] and result["seconds"] > 0 and result["sklearn_seconds"] > 0
    assert result["ratio"] == pytest.approx(result["seconds"] / result["sklearn_seconds"])
    within = result["seconds"] <= max(10 * result["sklearn_seconds"], 0.3)
    assert result["kept"] == within
    assert "one column" in capsys.readouterr().out


def test_the_tables_are_those_that_were_slow():
    tables = factor_analysis.tables()
    assert {X.shape for X, _ in tables.values()} >= {(569, 30), (178, 13), (1797, 64), (30, 300)}
    assert np.isnan(tables["30 x 300, holes"][0]).mean() == pytest.approx(0.2, abs=0.02)


@pytest.mark.slow
def test_the_command_is_timed(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 1))
    assert 0 < factor_analysis.seconds_of_command(X, tmp_path)["processor"] < 60
