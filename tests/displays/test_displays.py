"""Displays: what is drawn, where, and that nothing runs over anything else."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import to_hex
from scipy.stats import norm

from pictures import assert_legible, legend_of
from skavi import AmortizedVI, FactorizedVI, amortization_gap
from skavi.callbacks import ElboMonitor
from skavi.diagnostics import Calibration
from skavi.displays import (
    AmortizationGapDisplay,
    CalibrationDisplay,
    ElboCurveDisplay,
    InferenceFunctionDisplay,
    InferenceGapDisplay,
    LatentPosteriorDisplay,
)
from skavi.displays._axes import COLOURS
from skavi.families import FullNormal
from skavi.inference_functions import Constant, Polynomial
from skavi.models import FactorAnalysis, LinearModel, LocalLevel

RNG = np.random.default_rng(0)
COLUMN = RNG.normal(1.0, 3.0, size=(20, 1))
TABLE = pd.DataFrame(
    RNG.normal(size=(30, 2)) @ RNG.normal(size=(2, 4)) + 0.3 * RNG.normal(size=(30, 4)),
    columns=list("abcd"),
    index=[f"case {i}" for i in range(30)],
)
CLASSES = np.repeat(["one", "two", "three"], 10)


@pytest.fixture(scope="module")
def factorized():
    return FactorizedVI(LinearModel()).fit(COLUMN)


@pytest.fixture(scope="module")
def constant():
    return AmortizedVI(LinearModel(), Constant()).fit(COLUMN)


@pytest.fixture(scope="module")
def affine():
    return AmortizedVI(LinearModel(), Polynomial(1)).fit(COLUMN)


@pytest.fixture(scope="module")
def plane():
    return FactorizedVI(FactorAnalysis(2), family=FullNormal(), random_state=0).fit(TABLE)


# All of them


DISPLAYS = {
    "elbo": lambda f, c, p, **k: ElboCurveDisplay.from_estimator(c, **k),
    "parts": lambda f, c, p, **k: InferenceGapDisplay.from_estimator(c, COLUMN, **k),
    "gap": lambda f, c, p, **k: AmortizationGapDisplay.from_estimator(c, COLUMN, f, **k),
    "function": lambda f, c, p, **k: InferenceFunctionDisplay.from_estimator(c, COLUMN, f, **k),
    "latents": lambda f, c, p, **k: LatentPosteriorDisplay.from_estimator(p, TABLE, **k),
    "calibration": lambda f, c, p, **k: CalibrationDisplay.from_calibration(
        Calibration({"z": RNG.uniform(size=(100, 1))}, 0), **k
    ),
}


@pytest.mark.parametrize("draw", DISPLAYS.values(), ids=DISPLAYS)
def test_a_display_has_axes_and_a_figure_of_its_own_or_those_given(
    draw, factorized, constant, plane
):
    display = draw(factorized, constant, plane)
    assert display.ax_.figure is display.figure_
    assert display.ax_.get_xlabel() and display.ax_.get_ylabel()
    assert_legible(display)
    figure, ax = plt.subplots()
    n_figures = len(plt.get_fignums())
    given = draw(factorized, constant, plane, ax=ax)
    assert given.ax_ is ax and given.figure_ is figure
    assert len(plt.get_fignums()) == n_figures


def test_without_matplotlib_the_extra_is_named(monkeypatch, factorized):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "skavi\[plot\]"'):
        ElboCurveDisplay.from_estimator(factorized)


# ELBO curves


def test_elbo_curves_are_gaps_to_the_best_end(factorized, constant):
    display = ElboCurveDisplay.from_estimators({"F-VI": factorized, "constant": constant})
    assert legend_of(display) == ["F-VI", "constant"]
    assert display.ax_.get_yscale() == "log"
    x, gap = display.lines_[1].get_data()
    best = max(factorized.elbo_, constant.elbo_)
    np.testing.assert_array_equal(x[~np.isnan(x)], 1 + np.arange(constant.n_iter_))
    expected = best - constant.elbo_curve_
    assert expected[-1] > 0.1
    np.testing.assert_allclose(gap[~np.isnan(x)], expected)
    assert_legible(display)


def test_a_line_breaks_where_the_noise_rule_was_refined():
    from skavi.displays._elbo_curve import Curve

    elbo = np.array([-9.0, -5.0, -4.0, -6.0, -4.5])
    x, gap = Curve("fit", np.arange(5), elbo, -4.5).gaps(best=-4.5, floor=0.01)
    np.testing.assert_array_equal(x, [0, 1, 2, np.nan, 3, 4])
    # The third iterate is above the end, and so left out; the last is the best itself.
    np.testing.assert_allclose(gap, [4.5, 0.5, np.nan, np.nan, 1.5, 0.01])
    _, noisy = Curve("fit", np.arange(5), elbo, -4.5, False).gaps(best=-4.5, floor=0.01)
    assert len(noisy) == 5


def test_monitored_fits_are_drawn_against_seconds():
    monitor = ElboMonitor()
    for function in (Constant(), Polynomial(1)):
        AmortizedVI(LinearModel(), function).set_callbacks(monitor).fit(COLUMN)
    display = ElboCurveDisplay.from_monitor(monitor, names=["constant", "affine"])
    assert display.ax_.get_xlabel() == "seconds"
    assert legend_of(display) == ["constant", "affine"]
    for line, log in zip(display.lines_, monitor.logs, strict=True):
        x = line.get_xdata()
        np.testing.assert_array_equal(x[~np.isnan(x)], log.seconds)
    with pytest.raises(ValueError, match="no curve to draw"):
        ElboCurveDisplay.from_monitor(ElboMonitor())
    with pytest.raises(ValueError, match="names has 1 entries for 2"):
        ElboCurveDisplay.from_monitor(monitor, names=["one"])


def test_fits_without_names_are_numbered(constant, factorized):
    display = ElboCurveDisplay.from_estimators([constant, factorized, constant])
    assert legend_of(display) == ["AmortizedVI 1", "FactorizedVI", "AmortizedVI 3"]


# Gaps


def test_rows_gaps_are_sorted_counted_and_set_against_a_feature(factorized, constant, affine):
    gap = amortization_gap(constant, COLUMN, factorized)
    display = AmortizationGapDisplay.from_estimators([constant, affine], COLUMN, factorized)
    assert legend_of(display)[0] == f"Constant(): {gap.total:.3g} nats in all"
    line = display.ax_.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), np.sort(gap.per_row)[::-1])
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 21))
    assert_legible(display)

    display.plot_histogram(bins=5)
    counts, _ = np.histogram(gap.per_row, 5, (0, gap.per_row.max()))
    heights = display.ax_.patches[0].get_xy()[:, 1]
    assert heights.max() == counts.max()
    assert_legible(display)

    display.plot_feature(0)
    points = display.ax_.collections[0].get_offsets()
    np.testing.assert_allclose(points, np.column_stack([COLUMN[:, 0], gap.per_row]))
    assert display.ax_.get_xlabel() == "feature 0"
    assert_legible(display)


def test_total_gaps_against_a_setting(factorized, constant, affine):
    display = AmortizationGapDisplay.from_settings(
        [constant, affine], COLUMN, [1, 64], factorized, label="width"
    )
    totals = [amortization_gap(vi, COLUMN, factorized).total for vi in (constant, affine)]
    np.testing.assert_allclose(display.ax_.get_lines()[0].get_ydata(), totals)
    assert display.ax_.get_xscale() == "log" and display.ax_.get_xlabel() == "width"
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ["1", "64"]
    # The affine function has no gap: rounding is not written out.
    display.plot()
    assert legend_of(display)[1] == "64: below 1e-06 nats in all"
    assert_legible(display)
    display.plot_settings([(0, 0), (1, 1)], label="context")
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ["(0, 0)", "(1, 1)"]


def test_a_feature_is_checked(factorized, constant):
    display = AmortizationGapDisplay.from_estimator(constant, COLUMN, factorized)
    with pytest.raises(ValueError, match=r"feature=3 must be a column of X, 0 to 0"):
        display.plot_feature(3)
    frame = pd.DataFrame(COLUMN, columns=["dose"])
    named = AmortizationGapDisplay(display.gaps, frame)
    assert named.plot_feature("dose").ax_.get_xlabel() == "dose"
    with pytest.raises(ValueError, match="feature='size' is no column"):
        named.plot_feature("size")
    with pytest.raises(ValueError, match="plot_feature needs the rows"):
        AmortizationGapDisplay(display.gaps).plot_feature()


def test_parts_of_the_inference_gap_are_stacked(constant, factorized):
    pytest.importorskip("arviz_stats", reason="the arviz extra")
    fits = {"function": constant, "rows": factorized}
    display = InferenceGapDisplay.from_estimators(fits, COLUMN, COLUMN[:4], random_state=0)
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == [
        f"{name}, {rows}" for name in fits for rows in ("fitted rows", "new rows")
    ]
    assert legend_of(display) == ["family", "amortization"]  # a solver that left nothing
    ends = np.zeros(4)
    for bars in display.ax_.containers[:2]:
        np.testing.assert_allclose([bar.get_x() for bar in bars], ends, atol=1e-12)
        ends += [bar.get_width() for bar in bars]
    gaps = [part for _, gap in display.gaps for part in (gap, gap.generalization)]
    np.testing.assert_allclose(ends, [gap.per_row.mean() for gap in gaps], atol=1e-12)
    assert_legible(display)

    display.plot_feature(0)
    points = display.ax_.collections[0].get_offsets()
    np.testing.assert_allclose(points, np.column_stack([COLUMN[:, 0], gaps[0].per_row]))
    assert legend_of(display) == list(fits)

    alone = InferenceGapDisplay.from_result(gaps[0], name="one")
    labels = np.repeat(["a", "b"], 10)
    alone.plot_feature(labels=labels)
    assert [t.get_text() for t in alone.ax_.get_xticklabels()] == ["a", "b"]
    mean = alone.ax_.get_lines()[0].get_ydata()
    np.testing.assert_allclose(mean, [gaps[0].per_row[labels == k].mean() for k in "ab"])
    assert_legible(alone)
    with pytest.raises(ValueError, match="plot_feature needs the rows"):
        alone.plot_feature()
    with pytest.raises(ValueError, match=r"labels has 3 rows for gaps of \[20\]"):
        alone.plot_feature(labels=[0, 1, 2])


def test_fits_of_different_tables_are_refused_in_one_plot(factorized):
    other = FactorizedVI(LinearModel()).fit(COLUMN[:10])
    with pytest.raises(ValueError, match=r"different tables \(10 x 1 and 20 x 1\)"):
        ElboCurveDisplay.from_estimators([factorized, other])


# Latents


def test_a_map_has_a_point_and_an_ellipse_a_row(plane):
    display = LatentPosteriorDisplay.from_estimator(plane, TABLE, CLASSES)
    posterior = plane.posterior(TABLE)
    assert legend_of(display) == ["one", "three", "two"]
    ellipses = [c for c in display.ax_.collections if isinstance(c, EllipseCollection)]
    points = next(c for c in display.ax_.collections if not isinstance(c, EllipseCollection))
    _, order = np.nonzero((points.get_offsets()[:, None] == posterior.mean).all(-1))
    assert sorted(order) == list(range(30)) != list(order)  # at random: no class hides another
    np.testing.assert_array_equal(ellipses[0].get_offsets(), posterior.mean[order])
    colours = [to_hex(face).upper() for face in points.get_facecolor()]
    assert colours == [COLOURS[["one", "three", "two"].index(CLASSES[row])] for row in order]
    # 50 % of a bivariate normal lies within sqrt(2 log 2) standard deviations.
    covariance = posterior.scale[order[0]] @ posterior.scale[order[0]].T
    values, vectors = np.linalg.eigh(covariance)
    size = 2 * np.sqrt(2 * np.log(2)) * np.sqrt(values)
    ours = ellipses[0].get_widths()[0], ellipses[0].get_heights()[0]
    np.testing.assert_allclose(ours, size, rtol=1e-4)
    slope = np.tan(np.radians(ellipses[0].get_angles()[0]))
    assert slope == pytest.approx(vectors[1, 0] / vectors[0, 0])
    assert (
        posterior.mean.max(0) + size.max() / 2 * 0
        < [display.ax_.get_xlim()[1], display.ax_.get_ylim()[1]]
    ).all()
    assert_legible(display)


def test_numbers_are_a_colour_bar(plane):
    display = LatentPosteriorDisplay.from_estimator(plane, TABLE, TABLE["a"])
    assert len(display.figure_.axes) == 2  # the map and its bar
    assert display.ax_.get_legend() is None
    assert_legible(display)
    assert len(display.plot_intervals().figure_.axes) == 2


def test_intervals_are_sorted_and_hold_ninety_per_cent(plane):
    display = LatentPosteriorDisplay(plane.posterior(TABLE), CLASSES).plot_intervals(latent=1)
    posterior = plane.posterior(TABLE)
    order = np.argsort(posterior.mean[:, 1])
    labels = [t.get_text() for t in display.ax_.get_yticklabels()]
    assert labels == [TABLE.index[row] for row in order]
    bars = [c for c in display.ax_.collections if isinstance(c, LineCollection)]
    ends = np.concatenate([np.array(c.get_segments()) for c in bars])
    ends = ends[np.argsort(ends[:, 0, 1])][:, :, 0]
    low, high = norm.interval(0.9, posterior.mean[order, 1], posterior.sd[order, 1])
    np.testing.assert_allclose(ends, np.column_stack([low, high]), rtol=1e-4)
    assert_legible(display)


def test_one_latent_is_drawn_as_intervals(factorized):
    display = LatentPosteriorDisplay.from_estimator(factorized, COLUMN)
    assert display.ax_.get_ylabel() == "row"
    assert_legible(display)


def test_a_series_has_bands_and_observations():
    X = np.cumsum(RNG.normal(size=(30, 1)), 0)
    vi = FactorizedVI(LocalLevel(level_sd=1.0, noise_sd=1.0)).fit(X)
    display = LatentPosteriorDisplay(vi.posterior(X)).plot_series(X, times=np.arange(100, 130))
    posterior = vi.posterior(X)
    np.testing.assert_allclose(display.ax_.get_lines()[0].get_ydata(), posterior.mean[:, 0])
    wide, inner = (c.get_paths()[0].vertices for c in display.ax_.collections[:2])
    low, high = norm.interval(0.9, posterior.mean[0, 0], posterior.sd[0, 0])
    first = wide[wide[:, 0] == 100]
    np.testing.assert_allclose([first[:, 1].min(), first[:, 1].max()], [low, high], rtol=1e-3)
    assert np.ptp(inner[inner[:, 0] == 100][:, 1]) < np.ptp(first[:, 1])
    np.testing.assert_allclose(display.ax_.collections[2].get_offsets()[:, 1], X[:, 0])
    assert legend_of(display) == ["factorizedvi0", "observed"]
    assert_legible(display)
    times = LatentPosteriorDisplay(vi.posterior(X)).plot_series().ax_.get_lines()[0].get_xdata()
    np.testing.assert_array_equal(times, np.arange(30))


def test_wrong_latents_and_labels_are_named(plane):
    with pytest.raises(ValueError, match="latent=2 must be one of 0 to 1"):
        LatentPosteriorDisplay.from_estimator(plane, TABLE, latents=(0, 2))
    with pytest.raises(ValueError, match="labels has 3 entries for 30 rows"):
        LatentPosteriorDisplay.from_estimator(plane, TABLE, ["a", "b", "c"])


# The function and the table


def test_a_function_of_one_number_is_a_line_through_the_tables_dots(affine, factorized):
    display = InferenceFunctionDisplay.from_estimator(affine, COLUMN, factorized)
    dots, low, high, line = display.ax_.get_lines()
    table = factorized.posterior(COLUMN)
    np.testing.assert_allclose(dots.get_xydata(), np.column_stack([COLUMN[:, 0], table.mean[:, 0]]))
    np.testing.assert_allclose(low.get_ydata(), (table.mean - table.sd)[:, 0])
    np.testing.assert_allclose(high.get_ydata(), (table.mean + table.sd)[:, 0])
    # The ideal function of the linear model is affine: the line runs through every dot.
    x, y = line.get_data()
    np.testing.assert_allclose(np.interp(COLUMN[:, 0], x, y), table.mean[:, 0], atol=1e-3)
    assert legend_of(display) == [
        "F-VI's table: mean",
        "F-VI's table: mean ± sd",
        "A-VI's function: mean",
        "A-VI's function: mean ± sd",
    ]
    assert_legible(display)


def test_a_function_of_more_is_drawn_at_the_rows(plane):
    vi = AmortizedVI(FactorAnalysis(2), Polynomial(1), random_state=0).fit(TABLE)
    display = InferenceFunctionDisplay.from_estimator(vi, TABLE, feature="b", latent=1)
    at_rows = display.ax_.get_lines()[3]
    np.testing.assert_allclose(at_rows.get_xdata(), TABLE["b"])
    np.testing.assert_allclose(at_rows.get_ydata(), vi.posterior(TABLE).mean[:, 1])
    assert display.ax_.get_xlabel() == "b" and display.ax_.get_ylabel() == "latent 1"
    assert_legible(display)
    with pytest.raises(ValueError, match="latent=5 must be one of 0 to 1"):
        InferenceFunctionDisplay.from_estimator(vi, TABLE, latent=5)


# Calibration


def test_rank_histograms_have_the_band_of_level_bins():
    narrow = norm.cdf(3 * RNG.normal(size=200))
    report = Calibration({"theta": narrow, "z": RNG.uniform(size=(200, 2))}, 0)
    display = CalibrationDisplay.from_calibration(report)
    names = [label.split(":")[0] for label in legend_of(display)]
    assert names[0] == "99 % of level bins" and names[1] == "theta"
    assert set(names[2:]) == {"z[0]", "z[1]"}
    counts = display.ax_.patches[1].get_data().values
    np.testing.assert_array_equal(counts, np.histogram(narrow, 20, (0, 1))[0])
    assert counts[0] > 10 and counts[-1] > 10  # above the band: a valley
    assert_legible(display)
    only = CalibrationDisplay.from_calibration(report, names=["z"])
    assert len(only.ax_.get_legend().get_texts()) == 3
    many = Calibration({"z": RNG.uniform(size=(200, 12))}, 0)
    display = CalibrationDisplay.from_calibration(many)
    assert len(legend_of(display)) == 6  # the band, and the five least uniform
    assert_legible(display)
    with pytest.raises(ValueError, match="names: 'mu' is none of"):
        CalibrationDisplay.from_calibration(report, names=["mu"])
