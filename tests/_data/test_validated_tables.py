"""Weights are counts: shares are told, counts are not; and what a fit refuses by its sizes."""

import warnings

import numpy as np
import pytest
import scipy.sparse

from skavi import AmortizedVI, FactorizedVI
from skavi.diagnostics import SampleWeightWarning
from skavi.models import FactorAnalysis, LinearModel, TopicModel

X = np.random.default_rng(0).normal(2.0, 1.0, size=(30, 1))
SHARES = np.random.default_rng(1).dirichlet(np.ones(30))
TABLE = np.random.default_rng(0).normal(size=(30, 4)) @ np.diag([3.0, 2.0, 1.0, 1.0])


@pytest.mark.parametrize("weights", [SHARES, 2.9 * SHARES, list(SHARES)])
def test_shares_are_told(weights):
    vi = FactorizedVI(LinearModel())
    with pytest.warns(SampleWeightWarning, match=r"sums to (1|2.9) over 30 rows. Weights"):
        vi.fit(X, sample_weight=weights)
    with pytest.warns(SampleWeightWarning):
        vi.partial_fit(X, sample_weight=weights)


@pytest.mark.parametrize(
    "weights",
    [None, np.ones(30), np.arange(30) == 3, 30 * SHARES, 3.1 * SHARES, np.full(30, 0.5)],
    ids=["none", "ones", "a mask", "as many as rows", "0.103 a row", "halves"],
)
def test_counts_are_not(weights):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FactorizedVI(LinearModel()).fit(X, sample_weight=weights)


@pytest.mark.parametrize("estimator", [FactorizedVI, AmortizedVI])
@pytest.mark.parametrize("scale", [1e-150, 1e-40, 1e40, 1e150])
def test_tables_whose_starts_would_overflow_are_refused(estimator, scale):
    """At 1e40 loadings of zero came out, converged, 76 nats below the plain table."""
    with pytest.raises(ValueError, match=r"largest entry is .* in size, but fits need it between"):
        estimator(FactorAnalysis(1)).fit(TABLE * scale)


@pytest.mark.parametrize("scale", [1e-29, 1e29])
def test_tables_within_the_sizes_are_fitted_as_in_other_units(scale):
    plain, scaled = (FactorizedVI(FactorAnalysis(1)).fit(rows) for rows in (TABLE, TABLE * scale))
    expected = plain.elbo_ - TABLE.size * np.log(scale)
    assert scaled.elbo_ == pytest.approx(expected, abs=1e-6)  # tol is 1e-8 nats a row


def test_sizes_are_looked_up_in_sparse_tables_and_tables_with_holes():
    counts = scipy.sparse.csr_matrix(np.array([[1e40, 0.0], [0.0, 2.0]]))
    holes = np.where(TABLE > 2, np.nan, TABLE) * 1e40
    for vi, table in ((FactorizedVI(TopicModel(2)), counts), (FactorizedVI(), holes)):
        with pytest.raises(ValueError, match=r"largest entry is .*e\+40"):
            vi.fit(table)


def test_a_fit_transforms_what_it_would_not_fit():
    """The sizes bound starts alone: a row far out is transformed, linearly."""
    vi = FactorizedVI(FactorAnalysis(1)).fit(TABLE)
    assert np.isfinite(vi.transform(TABLE[:1] * 1e40)).all()
