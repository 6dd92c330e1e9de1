"""The house: rooms on floors without circles, small files, short functions, tests beside them."""

import ast
import graphlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "skavi"

# Floors from the ground up: a room (a file or folder at the top of skavi/) imports from rooms on
# floors below its own, never from another one on its own floor.
FLOORS = [
    ["_numerics", "_platform", "distributions"],
    ["_component", "_curvature", "_data", "callbacks"],
    ["families", "inference_functions", "noise"],
    ["models", "solvers"],
    ["objective"],
    ["closability", "posterior"],
    ["_fit"],
    ["_estimators"],
    ["diagnostics", "distributed", "persistence"],
    ["displays"],
    ["_command_line"],
    ["__init__", "__main__"],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

MOST_ENTRIES, MOST_LINES, MOST_LINES_A_FUNCTION = 26, 400, 40

OPTIONAL_LIBRARIES = ["arviz_base", "arviz_stats", "matplotlib", "pandas", "polars", "rich"]


def room_of(module: str) -> str:
    """Return the entry at the top of the package that holds a module; skavi itself is __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def find_modules(package: Path) -> dict[str, Path]:
    """Return the file of each module of ``package``, by dotted name."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imported_modules(module: str, path: Path, modules: Iterable[str]) -> dict[str, int]:
    """Return what ``module`` imports out of ``modules``, with the line of the first import."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imported: dict[str, int] = {}
    for node in _imports_at_run_time(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            relative = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(relative, package)
            # `from package import name` reads a submodule where there is one of that name.
            names = [
                submodule if (submodule := f"{source}.{alias.name}") in modules else source
                for alias in node.names
            ]
        for name in names:
            if name in modules:
                imported.setdefault(name, node.lineno)
    return imported


def _imports_at_run_time(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children = node.orelse
    for child in children:
        yield from _imports_at_run_time(child)


def find_violations(package: Path) -> list[str]:
    """Return one sentence for each breach of the floors in ``package``."""
    modules = find_modules(package)
    graph = {name: imported_modules(name, path, modules) for name, path in modules.items()}
    violations = [
        f"skavi/{room} has no floor: add it to FLOORS in tests/test_layers.py."
        for room in sorted({room_of(name) for name in modules} - FLOOR_OF.keys())
    ]
    for name, imported in graph.items():
        for target, line in imported.items():
            here, there = room_of(name), room_of(target)
            known = {here, there} <= FLOOR_OF.keys()
            if here != there and known and FLOOR_OF[here] <= FLOOR_OF[there]:
                violations.append(
                    f"{modules[name].relative_to(package.parent)}:{line}: {here} (floor "
                    f"{FLOOR_OF[here]}) imports {there} (floor {FLOOR_OF[there]}): move what it "
                    "needs down."
                )
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        # graphlib lists a cycle from the imported to the importing.
        violations.append(f"Modules import in a circle: {' -> '.join(reversed(error.args[1]))}.")
    return violations


def test_rooms_import_only_from_floors_below():
    violations = find_violations(PACKAGE)
    assert not violations, "\n" + "\n".join(violations)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"_data/rows.py": "import skavi.noise"}, "_data/rows.py:1: _data (floor 1)"),
        ({"_data/rows.py": "from skavi import noise"}, "imports noise (floor 2)"),
        ({"_data/rows.py": "from ..noise import MonteCarlo"}, "imports noise (floor 2)"),
        ({"_data/rows.py": "def f():\n    from .. import noise"}, "_data/rows.py:2: "),
        ({"_data/rows.py": "from skavi import FactorizedVI"}, "imports __init__ (floor 11)"),
        ({"models/_a.py": "from ..objective import elbo"}, "models (floor 3)"),
        ({"solvers.py": "from skavi import models"}, "imports models (floor 3)"),
        ({"models/__init__.py": "from ._a import A", "models/_a.py": "from . import B"}, "circle"),
        ({"helpers.py": ""}, "skavi/helpers has no floor"),
    ],
)
def test_a_breach_is_found(tmp_path, files, expected):
    violations = find_violations(_write_package(tmp_path, files))
    assert len(violations) == 1
    assert expected in violations[0]


@pytest.mark.parametrize(
    "files",
    [
        {"objective.py": "from .noise import MonteCarlo"},
        {"models/__init__.py": "from ._a import A", "models/_a.py": "from skavi import noise"},
        {"_data/rows.py": "if TYPE_CHECKING:\n    import skavi.noise"},
        {"_data/rows.py": "if typing.TYPE_CHECKING:\n    import skavi.noise\nelse:\n    pass"},
    ],
)
def test_an_import_from_a_floor_below_is_allowed(tmp_path, files):
    assert find_violations(_write_package(tmp_path, files)) == []


def _write_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "skavi"
    names = ["__init__.py", "_data/__init__.py", "models/__init__.py", "noise.py", "objective.py"]
    empty = dict.fromkeys(names, "")
    for name, text in (empty | files).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def test_contributing_lists_every_room_on_its_floor():
    page = (TESTS.parent / "docs" / "contributing.rst").read_text()
    shown, floor = {}, 0
    for number, room in re.findall(r"^ {4}(\d+ +| {3})(\w+)(?:\.py|/)", page, re.MULTILINE):
        floor = int(number) if number.strip() else floor
        shown[room] = floor
    assert shown == FLOOR_OF


def test_the_top_of_the_package_is_read_at_a_glance():
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_a_module_says_what_it_is_and_is_short(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert (ast.get_docstring(tree) or "").splitlines()[:1] != []
    assert text.count("\n") <= MOST_LINES
    long = {f.name: n for f in _functions(tree) if (n := _n_lines(f)) > MOST_LINES_A_FUNCTION}
    assert not long, long


def _functions(tree):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def _n_lines(function):
    """Count the lines of a function's body, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_private_folders_open_no_door():
    """A folder's __init__ that imports its modules would tie rooms in circles."""
    for init in PACKAGE.glob("_*/__init__.py"):
        assert len(ast.parse(init.read_text()).body) == 1, init


def test_tests_stand_where_their_module_does():
    """tests/ROOM/test_NAME.py tests skavi/ROOM/NAME.py, or all of the room if it bears its name."""
    for test in TESTS.glob("*/test_*.py"):
        room, name = test.parent.name, test.stem.removeprefix("test_")
        if room == "benchmarks":
            assert name == room or (TESTS.parent / room / f"{name}.py").exists(), test
            continue
        names = {path.stem.lstrip("_") for path in (PACKAGE / room).glob("*.py")} | {room}
        assert name in names, f"{test.relative_to(TESTS)}: skavi/{room} has no module {name}"


def test_every_room_has_tests():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    tested = {path.parent.name for path in TESTS.glob("*/test_*.py")}
    assert folders <= tested


def test_importing_skavi_loads_no_library():
    """Seconds of work (4.6 of processor time before, 0.04 since) wait for the first name used."""
    loaded = _run_python(
        "import sys, skavi",
        f"libraries = {{'numpy', 'sklearn', 'torch', *{OPTIONAL_LIBRARIES}}}",
        "print(*(libraries & set(sys.modules)))",
    )
    assert loaded == ""


def test_using_skavi_loads_no_optional_library():
    # scikit-learn itself loads pandas and rich where they are installed: so it goes first.
    loaded = _run_python(
        "import sys, sklearn.base, sklearn.callback, torch",
        "before = set(sys.modules)",
        "from skavi import *",
        f"print(*(set({OPTIONAL_LIBRARIES}) & (set(sys.modules) - before)))",
    )
    assert loaded == ""


def test_skavi_is_used_without_the_optional_libraries():
    # None in sys.modules makes an import fail as if the library were not installed.
    _run_python(
        f"import sys; sys.modules |= dict.fromkeys({OPTIONAL_LIBRARIES})",
        "from skavi import *",
    )


# Run by itself, it is the first import of libraries, one of which draws from python's generator.
@pytest.mark.changes_globals
def test_public_names_and_rooms_are_found_when_asked_for():
    import skavi

    rooms = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_")} - {"py"}
    assert {*skavi.__all__, *rooms} <= {*dir(skavi)}
    for name in skavi.__all__:
        assert getattr(skavi, name) is getattr(skavi, name)
    for room in rooms:
        assert getattr(skavi, room) is sys.modules[f"skavi.{room}"]
    with pytest.raises(AttributeError, match="module 'skavi' has no attribute 'FactorisedVI'"):
        _ = skavi.FactorisedVI


def _run_python(*lines: str) -> str:
    command = [sys.executable, "-c", "\n".join(lines)]
    process = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()
