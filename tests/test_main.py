import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from skavi import __main__ as command
from skavi.__main__ import main


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    """Run where files may be left, with a table of two factors in four columns."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 4)) + 0.3 * rng.normal(size=(60, 4))
    # Units must not matter for the choice of the number of components.
    np.savetxt("data.csv", X * [1, 10, 100, 1000], delimiter=",", header="a,b,c,d", comments="")


def numbers_after(name, text):
    line = next(line for line in text.splitlines() if line.startswith(name))
    return [float(number) for number in re.findall(r"-?\d+\.\d+(?:e[+-]\d+)?", line)]


def test_digits_give_a_table_the_gap_and_a_figure(capsys, monkeypatch, tmp_path):
    digits = load_digits()
    digits.data, digits.target = digits.data[:400], digits.target[:400]
    monkeypatch.setattr(command, "load_digits", lambda: digits)
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
    assert header == "z1,z2,z1_sd,z2_sd"
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


@pytest.mark.parametrize("text", ["1,2\n3,4\n", "1;2\n3;4\n", "x\ty\n1\t2\n3\t4\n", "\n1,2\n\n3,4"])
def test_tables_are_read_with_and_without_header(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    X, columns = command.read_table(path)
    np.testing.assert_array_equal(X, [[1, 2], [3, 4]])
    assert columns == (["x", "y"] if "x" in text else ["1", "2"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a,b\n", "has a header but no rows"),
        (b"a,b\n1,2\n3\n", "line 3 has 1 cells, but line 1 has 2"),
        (b"a,city\n1,Rome\n2,Oslo\n", "text in 1 of 2 columns: 'city' (line 2: 'Rome')"),
        (b"a,b\n1,2\n3,\n", "1 missing or infinite values, the first (missing) on line 3"),
        (b"a,b\n1,2\n3,NaN\n", "in column 'b': fill them in"),
        (b"a,b\n1,inf\n", "the first (infinite) on line 2"),
        (b"\xff\xfe1\x00", "is not a text file in UTF-8"),
        (b"a,b\n1,2\n3,4\n", "has 2 rows: at least 10"),
    ],
)
def test_a_bad_table_is_refused_in_words(tmp_path, capsys, content, message):
    (tmp_path / "bad.csv").write_bytes(content)
    assert message in refused(["bad.csv"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv"], "none.csv does not exist"),
        (["."], "cannot be read"),
        (["data.csv", "--components", "0"], "--components 0: must be from 1 to 4"),
        (["data.csv", "--components", "5"], "for 60 rows of 4 columns"),
        (["data.csv", "--components", "two"], "invalid int value: 'two'"),
        (["data.csv", "--output", "no/z.csv"], "--output no/z.csv cannot be written: No such"),
        (["data.csv", "--output", "data.csv"], "is the input file"),
        (["data.csv", "--figure", "plot.xyz"], "--figure plot.xyz: its ending must name a format"),
        (["data.csv", "--figure", "no/plot.png"], "--figure no/plot.png cannot be written"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.setattr(command, "compare", None)  # calling it would fail otherwise
    assert message in refused(arguments, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_without_matplotlib_and_rich_it_works_and_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert main(["data.csv", "--components", "1"]) == 0
    text = capsys.readouterr().out
    assert 'pip install "skavi[plot]"' in text and 'pip install "skavi[progress]"' in text
    assert "--figure a.png needs matplotlib" in refused(["data.csv", "--figure", "a.png"], capsys)


def test_help_names_every_option():
    process = subprocess.run(
        [sys.executable, "-m", "skavi", "--help"],
        cwd=Path(command.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    for option in ("data", "--components", "--output", "--figure", "--seed"):
        assert option in process.stdout
