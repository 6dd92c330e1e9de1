"""What a fitted estimator shows of itself."""

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import Polynomial
from skavi.models import LinearModel

COLUMN = np.random.default_rng(0).normal(size=(20, 1))


def test_an_estimator_whose_sds_are_too_small_says_so():
    """LinearModel: the exact sd is sqrt(1 + tau^2 / sigma^2) times q's, here 2.24 and 1.41."""
    for estimator in (FactorizedVI, lambda model: AmortizedVI(model, Polynomial(1))):
        narrow = estimator(LinearModel(tau=2.0, sigma=1.0)).fit(COLUMN)
        *first, note = repr(narrow).split("\n")
        assert "tau=2.0" in "".join(first)
        assert "up to 2.24 times" in note and "corrected=True" in note
        assert "up to 2.24 times" in narrow._repr_html_()
        fine = estimator(LinearModel(tau=1.0, sigma=1.0)).fit(COLUMN)
        assert "times" not in repr(fine) and "times:" not in fine._repr_html_()


def test_long_reprs_are_still_wrapped():
    vi = FactorizedVI(LinearModel(), max_iter=200, tol=1e-7, random_state=0, output="mean_sd")
    for shown in (repr(vi), repr(make_pipeline(StandardScaler(), vi))):
        assert max(map(len, shown.split("\n"))) <= 80
