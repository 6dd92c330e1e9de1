"""Pairs of latents."""

import numpy as np

from skavi import FactorizedVI
from skavi.displays import (
    LatentPosteriorDisplay,
)
from skavi.models import FactorAnalysis


def test_pairs_are_those_whose_means_vary_most(rng):
    X = rng.normal(size=(60, 9))
    posterior = FactorizedVI(FactorAnalysis(7), random_state=0, max_iter=400).fit(X).posterior(X)
    display = LatentPosteriorDisplay(posterior, np.repeat(list("ab"), 30)).plot_pairs()
    assert display.axes_.shape == (5, 5)
    assert "5 of 7 latents" in display.figure_.get_suptitle()
    most = np.sort(np.argsort(-posterior.mean.std(0))[:5])
    points = display.axes_[3, 1].collections[0].get_offsets()
    np.testing.assert_allclose(
        np.sort(points, 0), np.sort(posterior.mean[:, most[[1, 3]]], 0), rtol=1e-12
    )
    assert [t.get_text() for t in display.figure_.legends[0].get_texts()] == ["a", "b"]
