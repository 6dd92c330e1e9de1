"""The layers of skavi: a module imports only from its own layer or below, and never in a circle."""

import ast
import graphlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "skavi"

# A package stands for every module inside it, "skavi" for its __init__ alone.
LAYERS = {
    "skavi._aligned": 0,
    "skavi._arviz": 0,
    "skavi._compat": 0,
    "skavi._component": 0,
    "skavi._concurrency": 0,
    "skavi._group": 0,
    "skavi._html": 0,
    "skavi._memory": 0,
    "skavi._fingerprint": 0,
    "skavi._optional": 0,
    "skavi._quadrature": 0,
    "skavi._random": 0,
    "skavi._regression": 0,
    "skavi._rows": 0,
    "skavi._sparse": 0,
    "skavi._storage": 0,
    "skavi._sums": 0,
    "skavi._table": 0,
    "skavi._units": 0,
    "skavi._user_data": 0,
    "skavi._blocks": 1,
    "skavi._version": 0,
    "skavi._warning": 0,
    "skavi.distributions": 0,
    "skavi._globals": 1,
    "skavi._journal": 1,
    "skavi._trees": 1,
    "skavi.callbacks": 1,
    "skavi.families": 1,
    "skavi._inference_function": 1,
    "skavi.inference_functions": 1,
    "skavi.models": 1,
    "skavi.noise": 1,
    "skavi.solvers": 1,
    "skavi._inputs": 2,
    "skavi._turned_spheres": 2,
    "skavi._marginals": 2,
    "skavi.objective": 2,
    "skavi.posterior": 2,
    "skavi._choice": 3,
    "skavi._predictive": 3,
    "skavi._problem": 3,
    "skavi._start": 3,
    "skavi._amortize": 4,
    "skavi._basins": 4,
    "skavi._certificate": 4,
    "skavi._climb": 4,
    "skavi._failure": 4,
    "skavi._final_elbo": 4,
    "skavi._fit": 4,
    "skavi._local_problems": 4,
    "skavi._probe": 4,
    "skavi._refinement": 4,
    "skavi.closability": 4,
    "skavi._validation": 4,
    "skavi._draws": 4,
    "skavi._estimators": 4,
    "skavi._fitting": 4,
    "skavi._joint": 4,
    "skavi._partial_fit": 4,
    "skavi._fitted_problem": 4,
    "skavi._fitted_state": 4,
    "skavi._generation": 4,
    "skavi._row_inference": 4,
    "skavi._reporting": 4,
    "skavi._streaming": 4,
    "skavi._warm_start": 4,
    "skavi._comparison": 5,
    "skavi._loading": 5,
    "skavi._saving": 5,
    "skavi.diagnostics": 5,
    "skavi.displays": 5,
    "skavi.distributed": 5,
    "skavi.persistence": 5,
    "skavi": 6,
    "skavi.__main__": 6,
}

OPTIONAL_LIBRARIES = ["arviz_base", "arviz_stats", "matplotlib", "pandas", "polars", "rich"]


def layer_of(module: str) -> int | None:
    """Return the layer of the closest entry of LAYERS that covers ``module``."""
    name = module
    while name not in LAYERS and "." in name:
        name = name.rpartition(".")[0]
    return None if name == "skavi" and module != "skavi" else LAYERS.get(name)


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
    """Return one sentence for each breach of the layers in ``package``."""
    modules = find_modules(package)
    graph = {name: imported_modules(name, path, modules) for name, path in modules.items()}
    layers = {name: layer_of(name) for name in modules}
    violations = [
        f"{name} has no layer: add it to LAYERS in tests/test_layers.py."
        for name, layer in layers.items()
        if layer is None
    ]
    for name, imported in graph.items():
        for target, line in imported.items():
            below, above = layers[name], layers[target]
            if below is not None and above is not None and below < above:
                violations.append(
                    f"{modules[name].relative_to(package.parent)}:{line}: {name} (layer {below}) "
                    f"imports {target} (layer {above}): move what it needs down."
                )
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        # graphlib lists a cycle from the imported to the importing.
        violations.append(f"Modules import in a circle: {' -> '.join(reversed(error.args[1]))}.")
    return violations


def test_modules_import_only_from_their_layer_or_below():
    violations = find_violations(PACKAGE)
    assert not violations, "\n" + "\n".join(violations)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"_rows.py": "import skavi.noise"}, "_rows.py:1: skavi._rows (layer 0)"),
        ({"_rows.py": "from skavi import noise"}, "imports skavi.noise (layer 1)"),
        ({"_rows.py": "from .noise import MonteCarlo"}, "imports skavi.noise (layer 1)"),
        ({"_rows.py": "def f():\n    from . import noise"}, "_rows.py:2: "),
        ({"_rows.py": "from skavi import FactorizedVI"}, "imports skavi (layer 6)"),
        ({"models/_a.py": "from ..objective import elbo"}, "skavi.models._a (layer 1)"),
        ({"noise.py": "import skavi.solvers", "solvers.py": "from . import noise"}, "in a circle"),
        ({"models/__init__.py": "from ._a import A", "models/_a.py": "from . import B"}, "circle"),
        ({"helpers.py": ""}, "skavi.helpers has no layer"),
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
        {"solvers.py": "from . import noise"},
        {"models/__init__.py": "from ._a import A", "models/_a.py": "from skavi import noise"},
        {"_rows.py": "if TYPE_CHECKING:\n    import skavi.noise"},
        {"_rows.py": "if typing.TYPE_CHECKING:\n    import skavi.noise\nelse:\n    import numpy"},
    ],
)
def test_an_import_from_the_layer_or_below_is_allowed(tmp_path, files):
    assert find_violations(_write_package(tmp_path, files)) == []


def _write_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "skavi"
    empty = dict.fromkeys(["__init__.py", "models/__init__.py", "noise.py", "objective.py"], "")
    for name, text in (empty | files).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def test_importing_skavi_loads_no_optional_library():
    # scikit-learn itself loads pandas and rich where they are installed: so it goes first.
    loaded = _run_python(
        "import sys, sklearn.base, sklearn.callback, torch",
        "before = set(sys.modules)",
        "import skavi",
        f"print(*(set({OPTIONAL_LIBRARIES}) & (set(sys.modules) - before)))",
    )
    assert loaded == ""


def test_skavi_imports_without_the_optional_libraries():
    # None in sys.modules makes an import fail as if the library were not installed.
    _run_python(
        f"import sys; sys.modules |= dict.fromkeys({OPTIONAL_LIBRARIES})",
        "import skavi",
    )


def _run_python(*lines: str) -> str:
    command = [sys.executable, "-c", "\n".join(lines)]
    process = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()
