"""Decoders of tables that are far from 0, or have one cell far from all others."""

import warnings

import numpy as np
import pytest
import torch

from skavi import AmortizedVI, FactorizedVI
from skavi._data.missing_cells import Cells
from skavi.models import BayesianDecoder, PriorConflictWarning, UnusedLatentsWarning
from skavi.models._decoder_start import cell_of_all_variance

pytestmark = pytest.mark.filterwarnings("ignore::skavi.closability.AmortizationWarning")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 1)) @ RNG.normal(size=(1, 5)) + 0.5 * RNG.normal(size=(40, 5))


def far(value, row=3, column=0):
    table = X.copy()
    table[row, column] = value
    return table


def found(table, weights=None):
    cells = Cells.of(torch.as_tensor(table))
    ones = torch.ones(len(table), dtype=torch.float64)
    return cell_of_all_variance(cells, ones if weights is None else weights)


def test_one_cell_that_holds_all_variance_is_found():
    """Without a cell of 1e6 the sum of squares about the columns' means is some 200 of 1e12."""
    assert found(far(-1e6)) == 1e6
    with_holes = far(1e6, row=7, column=2)
    with_holes[:5, 0] = np.nan
    assert found(with_holes) == 1e6
    assert found(far(1e6) + 1e9) == pytest.approx(1e6 + 1e9)  # about the mean, not about 0


def test_no_other_cell_is():
    """1,000 sds are 0.02 % of the sum of squares away, which is more than a millionth."""
    one = np.zeros((40, 5))
    one[3, 0] = 1.0
    assert found(X) is found(far(1e3)) is found(X[:1]) is found(np.full((9, 2), 3.0)) is None
    assert found(one) is None  # without it all are equal: a table of two values
    weights = torch.ones(40, dtype=torch.float64)
    weights[3] = 0.0  # nor one that does not count
    assert found(far(1e8), weights) is None


def test_a_fit_says_that_one_cell_sets_its_scale():
    sentence = r"BayesianDecoder\(\): X has a cell of size 1e\+08 beside which all others are alike"
    model = BayesianDecoder(1, (4,))
    weights = torch.ones(40, dtype=torch.float64)
    with pytest.warns(PriorConflictWarning, match=sentence), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AmortizedVI did not converge")
        AmortizedVI(model, max_iter=1, random_state=0).fit(far(1e8))
    table = torch.as_tensor(far(1e8))
    for known in ({"noise_sd": 1.0}, {"output_scale": 1.0}, {"likelihood": "poisson"}):
        assert BayesianDecoder(1, (4,), **known).prior_conflict(table.abs(), weights) == ""


def test_a_table_far_from_zero_is_fitted_as_it_is_near_zero():
    """In single precision cells near 1e9 are multiples of 64, so such tables are fitted in double.

    The fits differ by their random steps: 0.05 nats a row are allowed, in 40 rows.
    """
    near, away = (
        AmortizedVI(BayesianDecoder(1, (4,)), random_state=0).fit(table) for table in (X, X + 1e9)
    )
    assert away.elbo_ == pytest.approx(near.elbo_, abs=2.0)
    assert away.transform(X + 1e9).std() == pytest.approx(near.transform(X).std(), rel=0.1)


@pytest.mark.slow
def test_few_rows_end_at_rest_so_that_faded_latents_show():
    """Three rows say nothing of latents: steps end at means of 0.9, which cost 1.2 nats."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 5))
    few = (signal + 0.5 * rng.normal(size=(40, 5)))[:3]
    with pytest.warns(UnusedLatentsWarning, match="uses 0 of its 2 latents"):
        vi = FactorizedVI(BayesianDecoder(2, (4,)), random_state=0).fit(few)
    assert np.abs(vi.transform(few)).max() < 0.1


@pytest.mark.parametrize(
    ("offset", "kept"), [(0.0, True), (1e2, True), (1e5, False), (1e9, False), (-1e9, False)]
)
def test_single_precision_keeps_or_loses_what_cells_differ_by(offset, kept):
    """Cells near c are rounded by up to c 2^-24, 0.003 where c is 1e5 and cells differ by 1."""
    weights = torch.ones(40, dtype=torch.float64)
    assert Cells.of(torch.as_tensor(X + offset)).survive_single(weights) is kept
    constant = torch.full((40, 2), 1e9 + 0.3, dtype=torch.float64)
    assert Cells.of(constant).survive_single(weights)
