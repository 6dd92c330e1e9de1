"""What was promised against what was measured, and the tables that show it."""

import math

from benchmarks.paper_experiments.report import Table

from .evaluation import MARKS

_NEAR_BEST = 1e-4  # of a rival's best value: where a noisy run counts as having reached it
_COLUMNS = [
    "method",
    "rate",
    "draws",
    "ms a step",
    "cold s",
    "1% s",
    "0.1% s",
    "1e-6 s",
    "best",
    "above the optimum",
    "final",
    "peak MB",
    "load",
]


def contest_table(outcome) -> Table:
    """Return every rival at its best rate; skavi's first fit of the process and its second."""
    rows, seen = [], set()
    for entry in [outcome.ours, *outcome.tuned(lambda t: speed(t, outcome.optimum))]:
        seen.add(entry.contestant)
        if entry.trace is None:
            rows.append(_failed(entry))
            continue
        rows.append(_row(entry, outcome.optimum, entry.trace.times))
        if len(entry.trace.warm):
            rows.append(_row(entry, outcome.optimum, entry.trace.warm, ", warm"))
    for entry in outcome.entries:
        if entry.contestant not in seen:
            seen.add(entry.contestant)
            rows.append(_failed(entry))
    title = f"{outcome.contest.name}: exact optimum of F-VI {outcome.optimum:.4f}"
    return Table(title, _COLUMNS, rows)


def speed(trace, optimum):
    """Order runs by their time to 0.1% of the optimum, then to 1%, then by their best value."""
    return (
        trace.seconds_to(_mark(optimum, 1e-3)),
        trace.seconds_to(_mark(optimum, 1e-2)),
        trace.best,
    )


def _mark(optimum, share):
    return optimum + share * abs(optimum)


def _row(entry, optimum, times, suffix=""):
    trace = entry.trace
    return [
        entry.contestant + suffix,
        entry.rate,
        entry.n_draws,
        1e3 * times[-1] / max(trace.n_steps, 1),
        trace.cold,
        *(_seconds(trace.seconds_to(_mark(optimum, share), times)) for share in MARKS),
        trace.best,
        (trace.best - optimum) / abs(optimum),
        trace.final,
        round(entry.returned.peak_mb),
        entry.returned.load,
    ]


def _seconds(value):
    return value if math.isfinite(value) else "never"


def _failed(entry):
    reason = entry.returned.reason
    reason = "not installed" if "ModuleNotFoundError" in reason else reason[:60]
    return [entry.contestant, reason, *[None] * (len(_COLUMNS) - 2)]


# --- promises ---------------------------------------------------------------------------------


def promises(outcome) -> list[list]:
    """Return rows (what, wanted at most, measured, kept) for one contest."""
    if outcome.ours.trace is None:
        return [[f"{outcome.contest.name}: skavi fails", None, None, False]]
    if not outcome.tuned(lambda t: t.best):
        return [[f"{outcome.contest.name}: no rival ran", None, None, None]]
    if outcome.contest.name in ("linear A-VI", "factors F-VI"):
        return []
    if outcome.contest.amortized:
        return _amortized(outcome)
    return _nonlinear(outcome) if outcome.contest.model == "nonlinear" else _factorized(outcome)


def _promise(name, wanted, measured):
    return [name, wanted, measured, bool(measured <= wanted)]


def _ratio(ours, theirs):
    """Ours as a share of theirs: 0 where only we arrive, inf where we do not."""
    if not math.isfinite(ours):
        return math.inf
    return ours / theirs if math.isfinite(theirs) else 0.0


def _factorized(outcome):
    name, mine = outcome.contest.name, outcome.ours.trace
    mark = _mark(outcome.optimum, 1e-3)
    rivals = outcome.tuned(lambda t: t.seconds_to(mark))
    stepping = min(e.trace.seconds_to(mark) for e in rivals)
    whole = min(e.trace.cold + e.trace.seconds_to(mark) for e in rivals)
    on = mine.seconds_to(_mark(outcome.optimum, 1e-6))
    return [
        _promise(
            f"{name}: to 0.1%, compilation included", 1 / 20, _ratio(mine.seconds_to(mark), whole)
        ),
        _promise(
            f"{name}: to 0.1%, compilation excluded (our second fit)",
            1 / 4,
            _ratio(mine.seconds_to_warm(mark), stepping),
        ),
        _promise(
            f"{name}: the same, our first fit", 1 / 4, _ratio(mine.seconds_to(mark), stepping)
        ),
        _promise(f"{name}: to 1e-6 in the rivals' time to 0.1%", 1.0, _ratio(on, stepping)),
    ]


def _nonlinear(outcome):
    name, mine = outcome.contest.name, outcome.ours.trace
    rivals = outcome.tuned(lambda t: t.best)
    fastest = min(rivals, key=lambda e: e.trace.cold + _to_own_best(e.trace)).trace
    whole = fastest.cold + _to_own_best(fastest)
    close = _mark(outcome.optimum, 5e-4)
    arrive = sum(e.trace.best <= close for e in rivals)
    return [
        _promise(
            f"{name}: to the fastest rival's best value, compilation included",
            1 / 10,
            _ratio(mine.seconds_to(fastest.best), whole),
        ),
        _promise(
            f"{name}: to 0.05% of the exhaustive search, in the rival's time",
            1.0,
            _ratio(mine.seconds_to(close), whole),
        ),
        _promise(f"{name}: rivals that come within 0.05%", 0, arrive),
    ]


def _amortized(outcome):
    name, mine = outcome.contest.name, outcome.ours.trace
    rivals = outcome.tuned(lambda t: t.final)
    best = min(e.trace.final for e in rivals)
    good = [e.trace for e in rivals if e.trace.final <= _mark(best, 1e-2)]
    whole = min(t.cold + t.seconds_to(_mark(t.final, 1e-2)) for t in good)
    return [
        _promise(
            f"{name}: to 1% of its own final value, compilation included",
            1 / 5,
            _ratio(mine.seconds_to(_mark(mine.final, 1e-2)), whole),
        ),
        _promise(
            f"{name}: final value above the best rival's, relative",
            1e-6,
            (mine.final - min(e.trace.best for e in rivals)) / abs(best),
        ),
    ]


def _to_own_best(trace):
    return trace.seconds_to(_mark(trace.best, _NEAR_BEST))


def verdict_table(rows) -> Table:
    """Return all promises in one table."""
    return Table("Promises: ratios, ours to theirs", ["what", "at most", "measured", "kept"], rows)


# --- a figure ---------------------------------------------------------------------------------


def draw(figure, outcomes):
    """Draw relative suboptimality against seconds, set-up and compilation included."""
    n_columns = min(2, len(outcomes))
    n_rows = math.ceil(len(outcomes) / n_columns)
    figure.set_size_inches(5.2 * n_columns, 3.4 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, outcome in zip(panels, outcomes, strict=False):
        _draw_panel(axes, outcome)
    for axes in panels[len(outcomes) :]:
        axes.set_visible(False)


def _draw_panel(axes, outcome, floor=1e-10):
    def line(times, losses, label, **style):
        gaps = (losses - outcome.optimum) / abs(outcome.optimum)
        axes.plot(times, gaps.clip(floor), label=label, **style)

    mine = outcome.ours.trace
    if mine is not None:
        line(mine.times, mine.losses, "skavi", color="C3", linewidth=2, marker=".")
        warm = mine.losses[: len(mine.warm)]
        line(mine.warm, warm, "skavi, second fit", color="C3", linestyle="--", marker=".")
    rivals = outcome.tuned(lambda t: speed(t, outcome.optimum))
    for entry, color in zip(rivals, ["C0", "C1", "C2", "C4"], strict=False):
        trace = entry.trace
        line(
            trace.cold + trace.times,
            trace.losses,
            f"{entry.contestant} ({entry.rate})",
            color=color,
        )
    axes.set(xscale="log", yscale="log", title=outcome.contest.name, xlabel="seconds")
    axes.set_ylim(floor / 2, 30)
    axes.set_ylabel("loss above F-VI's optimum, relative")
    axes.legend(fontsize="x-small")
