"""README does what it says: its Python blocks run in order, its commands and files exist."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest

from skavi import __main__ as command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Run all Python blocks as one script in an empty folder; return what each printed."""
    output, names, folder = [], {"__name__": "readme"}, tmp_path_factory.mktemp("readme")
    for block in blocks("python"):
        lines = []
        names["print"] = lambda *values, lines=lines: lines.append(" ".join(map(str, values)))
        with contextlib.chdir(folder):
            exec(compile(block, "README.md", "exec"), names)
        output.append("\n".join(lines))
    return output


def test_first_block_classifies_digits_at_no_gap(printed):
    lost = float(re.search(r"(\S+) nats lost by amortizing", printed[0])[1])
    assert abs(lost) < 1e-4  # both converge to 1e-8 nats a row, 1,797 rows
    assert float(re.search(r"accuracy: (\S+)", printed[0])[1]) > 0.85  # ten classes


def test_a_saved_fit_loads_as_it_was(printed):
    assert printed[-1] == "True"


def test_more_flexible_functions_have_smaller_gaps(printed):
    gaps = [float(gap) for gap in re.findall(r": (\S+) nats, ", "\n".join(printed[3:]))]
    # Nested families that converge to 1e-8 nats a row; printed with three decimals.
    assert len(gaps) == 3
    assert gaps[0] > gaps[1] > gaps[2] > -1e-3


def test_everyday_tasks_take_three_lines_at_most():
    (block,) = [block for block in blocks("python") if "\n# Fit" in block]
    paragraphs = [text.splitlines() for text in block.strip().split("\n\n")[1:]]
    tasks = {comment.partition(":")[0]: lines for comment, *lines in paragraphs}
    asked = "Fit, Pipeline, Grid search, Uncertainty, Convergence, Gap, Closability, Save and load"
    assert list(tasks) == [f"# {task}" for task in asked.split(", ")]
    assert all(1 <= len(lines) <= 3 for lines in tasks.values())


def test_the_gap_of_everyday_is_none_either(printed):
    """Factor analysis again, after the pipeline has fitted it to other rows."""
    gap = [float(word) for word in printed[1].splitlines()[-2].split()]
    assert len(gap) == 2 and np.abs(gap).max() < 1e-4


def test_the_model_recovers_what_the_waves_were_drawn_from(printed):
    mean, sd = (float(word) for word in printed[2].split(" +/- "))
    assert abs(mean - 2.0) < 3 * sd


def test_the_commands_keep_their_markers():
    for marker, end in (("main-command", "python -m skavi\n"), ("test-command", "-n auto\n")):
        (block,) = re.findall(rf"<!-- {marker} -->\n```bash\n(.*?)```", README, re.DOTALL)
        assert block.count("\n") == 1 and block.endswith(end)
        assert block.startswith("python -m pip install torch==2.13.0 -e ")


def test_every_shown_option_exists():
    shown = {option for block in blocks("bash") for option in re.findall(r"skavi.*?(--\w+)", block)}
    options = {text for action in command.parser()._actions for text in action.option_strings}
    assert shown and shown <= options


def test_local_links_lead_somewhere_and_the_figure_is_small():
    targets = [t for t in re.findall(r"\]\((.*?)\)", README) if "://" not in t]
    assert {"docs/digits.png", "LICENSE"} <= set(targets)
    assert all((ROOT / target).exists() for target in targets)
    assert (ROOT / "docs/digits.png").stat().st_size < 150_000
