"""What an experiment hands back: tables, remarks and figures; how they are printed and written."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """A titled table; a cell that is None prints as a dash."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]

    def text(self) -> str:
        """Return the table in aligned columns."""
        cells = [self.columns, *([_shown(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([self.title, *("  " + line for line in lines)])


@dataclass(frozen=True)
class Report:
    """One experiment's outcome; ``figures`` maps a name to a function that draws on a Figure.

    ``data`` is written, not printed.
    """

    name: str
    title: str
    settings: dict
    tables: list[Table]
    remarks: list[str]
    figures: dict[str, Callable] = field(default_factory=dict)
    data: dict = field(default_factory=dict)

    def text(self) -> str:
        """Return everything that is printed."""
        rule = "=" * len(self.title)
        remarks = "\n".join(f"* {remark}" for remark in self.remarks)
        return "\n\n".join([f"{self.title}\n{rule}", *(t.text() for t in self.tables), remarks])

    def write(self, folder: Path, seconds: float) -> list[Path]:
        """Write NAME.json and a PNG a figure into the folder; return their paths."""
        from matplotlib.figure import Figure

        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}.json"]
        content = {
            "experiment": self.name,
            "settings": self.settings,
            "seconds": round(seconds, 1),
            "tables": [asdict(table) for table in self.tables],
            "remarks": self.remarks,
        } | self.data
        paths[0].write_text(json.dumps(_plain(content), indent=1) + "\n")
        for name, draw in self.figures.items():
            figure = Figure(figsize=(8, 3.6), layout="constrained")
            draw(figure)
            paths.append(folder / f"{self.name}_{name}.png")
            figure.savefig(paths[-1], dpi=90)
        return paths


def _shown(cell):
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3e}" if 0 < abs(cell) < 1e-3 else f"{cell:,.4f}".rstrip("0").rstrip(".")
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _plain(value):
    """Return the value as JSON can hold it: no tuples, numpy numbers, infinities."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value
