import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skavi import AmortizedVI
from skavi import __main__ as command
from skavi.__main__ import main
from skavi._command_line import comparison
from skavi._command_line.csv_table import read_table
from skavi._command_line.table import Table
from skavi.models import FactorAnalysis


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    """Run where files may be left, with a table of two factors in four columns."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 4)) + 0.3 * rng.normal(size=(60, 4))
    # Units must not matter for the choice of the number of components.
    np.savetxt("data.csv", X * [1, 10, 100, 1000], delimiter=",", header="a,b,c,d", comments="")


def numbered(table, start, name):
    """Put a column that counts the rows in front."""
    lines = table.splitlines()
    names = [] if name is None else [f"{name},{lines.pop(0)}"]
    return "\n".join(names + [f"{start + i},{line}" for i, line in enumerate(lines)])


def beside(table, cell):
    """Put a column named new of equal cells at the end."""
    names, *lines = table.splitlines()
    return "\n".join([f"{names},new", *(f"{line},{cell}" for line in lines)])


def only(table, column):
    """Return one column of a table."""
    return "\n".join(line.split(",")[column] for line in table.splitlines())


def numbers_after(name, text):
    line = next(line for line in text.splitlines() if line.startswith(name))
    return [float(number) for number in re.findall(r"-?\d+\.\d+(?:e[+-]\d+)?", line)]


def test_digits_give_a_table_the_gap_and_a_figure(capsys, monkeypatch, tmp_path):
    X, labels = (part[:400] for part in load_digits(return_X_y=True))
    table = Table(X, [], [], False)
    monkeypatch.setattr(command, "_read", lambda arguments: (table, labels))
    monkeypatch.setattr(command.sys.stdout, "isatty", lambda: True)
    assert main(["--components", "4"]) == 0
    text = capsys.readouterr().out
    assert "FactorizedVI - fit" in text and "AmortizedVI - fit" in text  # progress bars
    *factorized, accuracy = numbers_after("FactorizedVI  ", text)
    elbo, held_out, _, _ = factorized
    pca_held_out, *_, pca_accuracy = numbers_after("PCA", text)
    assert elbo < 0
    # A bound of the same model's likelihood: below PCA's point estimate, by a fraction of a nat a
    # latent and a global's share of the rows.
    assert pca_held_out - 5 < held_out < pca_held_out
    # Four latents tell most of ten digits apart; 120 test rows, so 0.05 is one standard error.
    assert accuracy > 0.6
    assert abs(accuracy - pca_accuracy) < 0.15
    gap = re.search(r"Amortization gap: (\S+) nats a row", text)
    # Factor analysis is closable, and both fits stop at tol = 1e-8 nats a row.
    assert abs(float(gap[1])) < 1e-6
    assert (tmp_path / "skavi.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_of_ones_own_gives_latents(capsys, tmp_path):
    assert main(["data.csv", "--components", "2", "--output", "z.csv", "--figure", "f.svg"]) == 0
    text = capsys.readouterr().out
    assert "60 rows x 4 columns" in text and "accuracy" not in text
    header, *_ = (tmp_path / "z.csv").read_text().splitlines()
    latents = np.loadtxt("z.csv", delimiter=",", skiprows=1)
    assert header == "factor0,factor1,factor0_sd,factor1_sd"  # as of one fit
    assert latents.shape == (60, 4)
    # The latents carry the table: four columns, nearly all in two factors.
    X = np.loadtxt("data.csv", delimiter=",", skiprows=1)
    design = np.column_stack([latents[:, :2], np.ones(60)])
    _, residual, *_ = np.linalg.lstsq(design, X / X.std(0), rcond=None)
    assert (residual / 60 < 0.2).all()
    assert (tmp_path / "f.svg").exists() and not (tmp_path / "skavi.png").exists()


def test_components_are_counted_in_standardised_columns(capsys):
    main(["data.csv"])
    assert "n_components=2" in capsys.readouterr().out


def test_one_component_has_a_figure_too(tmp_path):
    assert main(["data.csv", "--components", "1"]) == 0
    assert (tmp_path / "skavi.png").exists()


def test_seed_chooses_the_split(capsys):
    tables = []
    for seed in ("0", "0", "1"):
        main(["data.csv", "--components", "1", "--seed", seed])
        tables.append(numbers_after("FactorizedVI  ", capsys.readouterr().out)[:2])
    assert tables[0] == tables[1] != tables[2]


ROWS = "".join(f"{i * 0.37 % 1:.3f},{i * 0.73 % 1:.3f},{i * i % 7}\n" for i in range(12))
TABLE = "a,b,c\n" + ROWS
SEMICOLONS = TABLE.replace(",", ";").replace(".", ",")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
# Content of the table, further arguments, and: the shape that is fitted with a piece of what is
# printed, or the sentence that it is refused with.
HOSTILE = {
    # read
    "plain": (TABLE, [], (12, 3), "Names of columns: from the first line."),
    "no header": (ROWS, [], (12, 3), "No header."),
    "semicolons and decimal commas": (SEMICOLONS, [], (12, 3), "12 rows x 3 columns"),
    "tabs": (TABLE.replace(",", "\t"), [], (12, 3), "12 rows x 3 columns"),
    "byte order mark": (b"\xef\xbb\xbf" + TABLE.encode(), [], (12, 3), "12 rows x 3 columns"),
    "line ends of Windows": (TABLE.replace("\n", "\r\n"), [], (12, 3), "12 rows x 3 columns"),
    "line ends of old": (TABLE.replace("\n", "\r"), [], (12, 3), "12 rows x 3 columns"),
    "no last line end": (TABLE.rstrip(), [], (12, 3), "12 rows x 3 columns"),
    "quotes": (TABLE.replace("a,", '"a ""1"", of",'), [], (12, 3), "12 rows x 3 columns"),
    "empty cell": (TABLE.replace("0.370", ""), [], (12, 3), "marginalised: 1 cells (2.8 %)"),
    "NA": (TABLE.replace("0.370", "NA"), [], (12, 3), "marginalised: 1 cells"),
    "?": (TABLE.replace("0.370", " ? "), [], (12, 3), "marginalised: 1 cells"),
    "nan": (TABLE.replace("0.370", "-NaN"), [], (12, 3), "marginalised: 1 cells"),
    "row of holes": (TABLE.replace("0.370,0.730,1", ",,"), [], (12, 3), "marginalised: 3 cells"),
    "empty rows at the end": (TABLE + ",,\n,,\n", [], (12, 3), "12 rows x 3 columns"),
    "index of pandas": (numbered(TABLE, 0, ""), [], (12, 3), "Left out: 'column 1' (an index)."),
    "index from 1": (numbered(TABLE, 1, "id"), [], (12, 3), "Left out: 'id' (an index)."),
    "index, no header": (numbered(ROWS, 0, None), [], (12, 3), "Left out: '1' (an index)."),
    "labels": (beside(TABLE, "x"), [], (12, 3), "Left out: 'new' (text: 'x')."),
    "dates": (beside(TABLE, "2020-02-30"), [], (12, 3), "Left out: 'new' (text: '2020-02-30')."),
    "vertical tab": (beside(TABLE, "x\x0by"), [], (12, 3), "(text: 'x\\x0by')"),
    "next line": (beside(TABLE, "x\x85y\u2028z"), [], (12, 3), "(text: 'x\\x85y\\u2028z')"),
    "constant column": (beside(TABLE, "7"), [], (12, 3), "Left out: 'new' (constant: 7)."),
    "empty column": (beside(TABLE, ""), [], (12, 3), "Left out: 'new' (no value)."),
    "long label": (beside(TABLE, "x" * 9999), [], (12, 3), "xxx...'"),
    "letters": (beside(TABLE, "\U0001f600\u202e"), [], (12, 3), "text: '\U0001f600\\u202e'"),
    "one column": (only(TABLE, 0), [], (12, 1), "12 rows x 1 columns"),
    "nothing but an index": (only(numbered(TABLE, 1, "i"), 0), [], (12, 1), "12 rows x 1 columns"),
    "twice the same name": (TABLE.replace("a,b,c", "a,a,a"), [], (12, 3), "12 rows x 3 columns"),
    "numbers as names": (TABLE.replace("a,b,c", "0,1,2"), [], (12, 3), "from the first line"),
    "largest seed": (TABLE, ["--seed", "4294967295"], (12, 3), "12 rows x 3 columns"),
    "all components": (TABLE, ["--components", "3"], (12, 3), "n_components=3"),
    # refused
    "empty": ("", [], None, "hostile.csv is empty"),
    "blank lines": ("\n\n \n", [], None, "hostile.csv is empty"),
    "header alone": ("a,b,c\n", [], None, "has a header but no rows"),
    "nine rows": ("a\n" + "1\n2\n5\n" * 3, [], None, "has 9 rows: at least 10 are needed"),
    "short line": (TABLE + "1,2\n", [], None, "line 14 has 2 cells, but line 1 has 3"),
    "long line": (TABLE + "1,2,3,4\n", [], None, "line 14 has 4 cells, but line 1 has 3"),
    "constant": ("a,b\n" + "1,2\n" * 12, [], None, "no column of numbers that differ"),
    "holes alone": ("a,b\n" + "NA,?\n" * 12, [], None, "no column of numbers that differ"),
    "labels alone": ("a,b\n" + "x,y\n" * 12, [], None, "no column of numbers that differ"),
    "prose": ("Dear Sir or Madam,\n\nhow are you?\n", [], None, "has 1 cells, but line 1 has 2"),
    "underscore": (TABLE + "1_000,2,3\n", [], None, "'1_000' in column 'a', line 14"),
    "word among numbers": (TABLE + "1,two,3\n", [], None, "'two' in column 'b', line 14"),
    "thousands": (TABLE + '"1,000",2,3\n', [], None, "text among numbers: '1,000'"),
    "both decimal marks": (SEMICOLONS + "1.5;2;3\n", [], None, "decimal commas ('0,000'"),
    "200,000 digits": (TABLE + "9" * 200_000 + ",2,3\n", [], None, "line 14 cannot be read: field"),
    "1,000 digits": (TABLE + "9" * 1000 + ",2,3\n", [], None, "999...' in column 'a', line 14"),
    "1e200": (TABLE + "1e200,2,3\n", [], None, "'1e200' in column 'a', line 14: numbers may be up"),
    "-1e400": (TABLE + "-1e400,2,3\n", [], None, "'-1e400' in column 'a'"),
    "infinity": (TABLE + "-Infinity,2,3\n", [], None, "'-Infinity' in column 'a'"),
    "nearly constant": ("a\n" + "1e-200\n3e-200\n" * 6, [], None, "differ by 2e-200 at most"),
    "open quote": (TABLE + '"1,2,3\n', [], None, "cannot be read: unexpected end of data"),
    "null bytes": (TABLE + "\0,2,3\n", [], None, "holds null bytes"),
    "latin-1": (TABLE.replace("a,", "\xe4,").encode("latin-1"), [], None, "not a text file"),
    "utf-16": (TABLE.encode("utf-16"), [], None, "not a text file in UTF-8"),
    "a figure": (PNG, [], None, "not a text file in UTF-8"),
    "seed -1": (TABLE, ["--seed", "-1"], None, "argument --seed: -1 is not from 0 to 4294967295"),
    "seed 2 ** 32": (TABLE, ["--seed", "4294967296"], None, "4294967296 is not from 0 to"),
    "seed 1_0": (TABLE, ["--seed", "1_0"], None, "argument --seed: '1_0' is not a whole number"),
    "seed of 9,999 digits": (TABLE, ["--seed", "9" * 9999], None, "999...' is not a whole number"),
    "no component": (TABLE, ["--components", "0"], None, "--components 0: must be from 1 to 3"),
    "four components": (TABLE, ["--components", "4"], None, "for 12 rows of 3 columns"),
    "two components": (TABLE, ["--components", "two"], None, "'two' is not a whole number"),
    "output is input": (TABLE, ["--output", "hostile.csv", "--force"], None, "is the input file"),
    "output is a link": (TABLE, ["--output", "link.csv", "--force"], None, "is the input file"),
    "figure is input": (TABLE, ["--figure", "hostile.png", "--force"], None, "is the input file"),
    "output exists": (TABLE, ["--output", "old.png"], None, "--output old.png exists: choose"),
    "figure exists": (TABLE, ["--figure", "old.png"], None, "--figure old.png exists: choose"),
    "named twice": (
        TABLE,
        ["--output", "z.png", "--figure", "./z.png", "--force"],
        None,
        "--output z.png and --figure ./z.png are one file",
    ),
    "output into no folder": (TABLE, ["--output", "no/z.csv"], None, "cannot be written: No such"),
    "output into a pipe": (TABLE, ["--output", "pipe", "--force"], None, "is not a regular file"),
    "output on a device": (TABLE, ["--output", "/dev/null", "--force"], None, "not a regular file"),
    "figure of no format": (TABLE, ["--figure", "f.xyz"], None, "its ending must name a format"),
    "abbreviation": (TABLE, ["--comp", "1"], None, "unrecognized arguments: --comp 1"),
}  # fmt: skip


class Stop(Exception):
    """The fit would begin here."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_table_is_read_or_refused(tmp_path, capsys, monkeypatch, name):
    content, arguments, shape, text = HOSTILE[name]
    (tmp_path / "hostile.csv").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    os.symlink("hostile.csv", "link.csv")
    os.link("hostile.csv", "hostile.png")
    os.mkfifo("pipe")
    (tmp_path / "old.png").write_text("old")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    fitted = []

    def begin(X, labels, model, seed, verbose):
        fitted.append(X)
        raise Stop

    monkeypatch.setattr(comparison, "compare", begin)
    if shape is None:
        assert text in refused(["hostile.csv", *arguments], capsys)
        assert not fitted
    else:
        with pytest.raises(Stop):
            main(["hostile.csv", *arguments])
        assert fitted[0].shape == shape
        assert text in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_the_table_of_decimal_commas_is_the_same_table(tmp_path):
    for name, content in {"a.csv": TABLE, "b.csv": SEMICOLONS}.items():
        (tmp_path / name).write_text(content)
    np.testing.assert_array_equal(read_table("a.csv").X, read_table("b.csv").X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv"], "none.csv does not exist"),
        (["."], "cannot be read"),
        (["data.csv", "--output", "data.csv"], "is the input file"),
        (["data.csv", "--figure", "no/plot.png"], "--figure no/plot.png cannot be written"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.setattr(comparison, "compare", None)  # calling it would fail otherwise
    assert message in refused(arguments, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.endswith("\n") and len(message) < 500
    return message


def test_without_matplotlib_and_rich_it_works_and_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(command.sys.stdout, "isatty", lambda: True)
    assert main(["data.csv", "--components", "1"]) == 0
    text = capsys.readouterr().out
    assert 'pip install "skavi[plot]"' in text and 'pip install "skavi[progress]"' in text
    assert "--figure a.png needs matplotlib" in refused(["data.csv", "--figure", "a.png"], capsys)


def run(*arguments, **options):
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "skavi", *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(command.__file__).parents[1])},
        capture_output=True,
        text=True,
        **options,
    )


def test_help_names_every_option():
    process = run("--help")
    assert process.returncode == 0 and process.stderr == ""
    for option in ("data", "--components", "--output", "--figure", "--seed", "--force"):
        assert option in process.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["none.csv"], ["data.csv", "--output", "no/z"]])
def test_help_and_refusals_wait_for_no_library(arguments):
    code = f"""
import sys
from skavi.__main__ import main
try:
    main({arguments})
except SystemExit:
    print({{"torch", "sklearn", "pandas", "scipy", "rich"}} & {{*sys.modules}})
"""
    root = Path(command.__file__).parents[1]
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.endswith("set()\n")


def test_a_process_ends_with_one_sentence_and_code_2(tmp_path):
    os.mkfifo("pipe")
    # Odd bytes in names are shown, not sent to the terminal.
    for path in ("pipe", "no\n\x1b[31m.csv", b"\xff.csv"):
        process = run(path, timeout=60)
        assert process.returncode == 2 and process.stdout == ""
        assert re.fullmatch(r"python -m skavi: error: [ -~]+\.\n", process.stderr)


def test_a_table_of_holes_labels_and_an_index_is_fitted(tmp_path, capsys):
    """To the end, from a file whose name looks like a formula, and once more beside its outputs."""
    name = "$a_$^.csv"
    table = beside(numbered(TABLE.replace("0.370", ""), 0, ""), "Rome")
    (tmp_path / name).write_text(table)
    arguments = [name, "--components", "1", "--output", "z.csv"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "'column 1' (an index); 'new' (text: 'Rome')" in text
    assert "PCA and FactorAnalysis take no missing cells" in text
    assert "\nPCA" not in text and numbers_after("AmortizedVI  ", text)
    latents = np.loadtxt("z.csv", delimiter=",", skiprows=1)
    assert latents.shape == (12, 2) and np.isfinite(latents).all()
    assert "--output z.csv exists" in refused(arguments, capsys)
    assert main([*arguments, "--force", "--figure", "f.svg"]) == 0
    np.testing.assert_array_equal(np.loadtxt("z.csv", delimiter=",", skiprows=1), latents)
    main([name, "--components", "1"])
    assert "Figure: skavi-2.png" in capsys.readouterr().out
    files = {"data.csv", "f.svg", "skavi-2.png", "skavi.png", "z.csv", name}
    assert set(os.listdir()) == files and (tmp_path / name).read_text() == table


def test_a_table_that_cannot_be_fitted_is_refused_in_one_sentence(tmp_path, capsys):
    # Column d has values in the rows to test on alone.
    _, test = train_test_split(np.arange(12), test_size=comparison.TEST_FRACTION, random_state=0)
    names, *rows = TABLE.splitlines()
    rows = [f"{row},{i if i in test else ''}" for i, row in enumerate(rows)]
    (tmp_path / "holes.csv").write_text("\n".join([f"{names},d", *rows]))
    assert "holes.csv cannot be fitted: X has 1 columns" in refused(["holes.csv"], capsys)


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "skavi", "--help"],
        env=os.environ | {"PYTHONPATH": str(Path(command.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


@pytest.mark.parametrize("limit", [20_000, 0], ids=["from F-VI", "on its own"])
def test_amortized_vi_starts_from_the_factorized_fit_and_ends_where_it_would_alone(
    monkeypatch, limit
):
    monkeypatch.setattr(comparison, "MAX_FULL_GLOBALS", limit)
    X = np.random.default_rng(0).normal(size=(40, 2)) @ [[1.0, 2, 0], [0, 1, 3]] + [1, 2, 3]
    X += 0.3 * np.random.default_rng(1).normal(size=X.shape)
    factorized, amortized, *_ = comparison.compare(X, None, FactorAnalysis(1), 0, 0).results
    assert (amortized.estimator.init is factorized.estimator) == bool(limit)
    train, _ = train_test_split(X, test_size=comparison.TEST_FRACTION, random_state=0)
    alone = AmortizedVI(FactorAnalysis(1), random_state=0).fit(train)
    assert amortized.elbo == pytest.approx(alone.elbo_ / len(train), abs=1e-9)
    if limit:  # which took its seconds, too
        assert amortized.fit_seconds > factorized.fit_seconds
