"""How rows are coloured by their labels: classes with a legend, or numbers with a colour bar."""

import numpy as np

from skavi.displays._axes import BESIDE, COLOURS, MARKERS, colour, legend, short

#: Classes that a legend names. Judged by eye.
_MOST_NAMED = 40
#: Inches of an entry of a legend, and of a legend's width: a handle, and each character.
_ENTRY, _HANDLE, _CHARACTER = 0.2, 0.45, 0.075
#: Different numbers above which labels are a quantity rather than classes.
_FEW_NUMBERS = 10


class RowColours:
    """Colours and markers of rows, by labels of theirs.

    Parameters
    ----------
    labels : array-like of shape (n_rows,) or None
        Classes; or numbers, more than ten different ones. None: all rows look alike.
    n_rows : int
    """

    def __init__(self, labels, n_rows):
        if labels is not None and len(labels) != n_rows:
            raise ValueError(f"labels has {len(labels)} entries for {n_rows} rows.")
        self.labels = np.zeros(n_rows, dtype=int) if labels is None else np.asarray(labels)
        self.values, self.codes = np.unique(self.labels, return_inverse=True)
        self.given = labels is not None
        self.continuous = self.labels.dtype.kind == "f" and len(self.values) > _FEW_NUMBERS

    @property
    def named(self) -> bool:
        """Whether there is a legend of classes."""
        return self.given and not self.continuous and len(self.values) <= _MOST_NAMED

    @property
    def unnamed(self) -> str:
        """Words for a title where classes are too many to be named."""
        hidden = self.given and not self.continuous and not self.named
        return f"; {len(self.values)} classes, not named" if hidden else ""

    def figsize(self, width, height):
        """Return the size of a figure with room for the legend beside it."""
        if not self.named:
            return width, height
        longest = max(len(short(value)) for value in self.values)
        beside = max(0.0, _HANDLE + _CHARACTER * longest - 0.9)  # some room is there by default
        return width + beside, max(height, 0.4 + _ENTRY * len(self.values))

    def groups(self, rows, ink):
        """Yield the rows of each marker with colours that suit the ink, shuffled: none hides."""
        rows = np.random.default_rng(0).permutation(rows)
        if self.continuous:
            import matplotlib

            norm = matplotlib.colors.Normalize(self.labels.min(), self.labels.max())
            self._shades = matplotlib.cm.ScalarMappable(norm, _palette(ink))
            yield rows, self._shades.to_rgba(self.labels[rows]), MARKERS[0]
            return
        markers = self.codes[rows] // len(COLOURS) % len(MARKERS)
        for marker in np.unique(markers).tolist():
            same = rows[markers == marker]
            yield same, [colour(code) for code in self.codes[same].tolist()], MARKERS[marker]

    def key(self, display, axes=None):
        """Name the labels beside the axes, or beside several: a legend, or a bar of numbers."""
        ax = display.ax_
        if self.continuous:
            axes = ax if axes is None else axes.ravel().tolist()
            display.figure_.colorbar(self._shades, ax=axes, label="label")
        elif self.named:
            handles = []
            for i, value in enumerate(self.values):
                look = {"color": colour(i), "marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}
                dot = ax.scatter([], [], s=18, linewidths=0, label=short(value), **look)
                handles.append(dot)
            if axes is None:
                legend(ax, **BESIDE)
            else:
                beside = "outside center right"
                display.figure_.legend(handles=handles, loc=beside, frameon=False, fontsize="small")


def _palette(ink):
    """Return cividis, readable with any colour vision, without what the background hides."""
    import matplotlib

    light = np.mean(matplotlib.colors.to_rgb(ink)) > 0.5
    ends = (0.25, 1.0) if light else (0.0, 0.88)
    return matplotlib.colors.ListedColormap(
        matplotlib.colormaps["cividis"](np.linspace(*ends, 256))
    )
