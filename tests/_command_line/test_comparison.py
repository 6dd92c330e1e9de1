"""The comparison of both fits on one table, as text."""

import numpy as np
import pytest

from skavi._command_line.comparison import Comparison, Result, as_text


def result(name, elbo, held_out):
    return Result(name, None, elbo, held_out, 0.1, 0.001, None)


@pytest.mark.parametrize(("held_out", "told"), [(-12.6, True), (-10.05, False), (-9.0, False)])
def test_what_a_function_loses_on_new_rows_is_told_where_it_is_noticed(held_out, told, monkeypatch):
    monkeypatch.setattr(Comparison, "gap_text", "0 nats a row")
    results = [result("FactorizedVI", -9.0, -10.0), result("AmortizedVI", -9.0, held_out)]
    table = np.random.default_rng(0).normal(size=(6, 2))
    text = as_text(Comparison(results, table, table, None))
    assert ("the function loses 2.6 nats a row" in text) == told
    assert "Amortization gap: 0 nats a row" in text
