"""Checks of a drawn figure: that all that is written on it can be read."""

import itertools


def drawn_ticks(axis):
    """Labels of the ticks that lie in view: matplotlib keeps others, and does not draw them."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    ticks = axis.get_major_ticks() + axis.get_minor_ticks()
    return [tick.label1 for tick in ticks if low - slack <= tick.get_loc() <= high + slack]


def assert_legible(display, axes=None):
    """Texts lie inside the figure, no two overlap, the legend covers no data: at default size."""
    figure, axes = display.figure_, display.ax_ if axes is None else axes
    figure.canvas.draw()
    texts = [axes.xaxis.label, axes.yaxis.label, axes.title, *axes.texts]
    texts += drawn_ticks(axes.xaxis) + drawn_ticks(axes.yaxis)
    if axes.get_legend() is not None:
        texts += axes.get_legend().get_texts()
        assert not axes.get_legend().get_window_extent().padded(-1).overlaps(axes.bbox)
    shown = [text for text in texts if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
    page = figure.bbox
    for text, box in boxes:
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{one!r} overlaps {other!r}"


def legend_of(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]
