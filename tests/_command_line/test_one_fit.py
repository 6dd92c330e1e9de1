"""The command with --model: one fit, and the tables, fits and figures that it writes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars
import pytest

import skavi
from skavi import AmortizedVI, FactorizedVI
from skavi import __main__ as command
from skavi.__main__ import main
from skavi._command_line import arguments, table_files
from skavi.models import FactorAnalysis, MixedEffects

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(60, 2))
WHOLE = Z @ RNG.normal(size=(2, 4)) + 0.1 * RNG.normal(size=(60, 4))
HOLES = np.where(RNG.random(WHOLE.shape) < 0.1, np.nan, WHOLE)
GROUP = np.repeat(np.arange(6), 10)
SCORE = 2 + 0.5 * Z[:, 0] + np.array([0.5, -0.2, 0.1, 0.9, -1, 0])[GROUP]
SCORE += 0.3 * RNG.normal(size=60)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a folder with a table of holes, an index and a label, one of groups, and counts."""
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame(HOLES, columns=list("abcd")).round(6)
    table["species"] = ["xyz"[i % 3] for i in range(60)]
    table.to_csv("holes.csv")
    table.to_parquet("holes.parquet")
    pupils = pd.DataFrame({"school": [f"school {g}" for g in GROUP], "ses": Z[:, 0]})
    pupils["score"] = np.where(np.arange(60) % 9, SCORE, np.nan)
    pupils.to_csv("pupils.csv", sep=";", decimal=",", index=False)
    counts = np.random.default_rng(1).poisson(np.exp(1 + 0.5 * WHOLE))
    pd.DataFrame(counts).to_csv("counts.csv", index=False)
    return tmp_path


def refused(options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_holes_to_latents_a_filled_table_a_fit_and_a_figure(capsys):
    outputs = ["--output", "z.csv", "--impute", "full.csv", "--save", "fit.skavi"]
    assert main(["holes.csv", "--components", "2", *outputs, "--plot", "z.png"]) == 0
    text = capsys.readouterr().out
    table = pd.read_csv("holes.csv", index_col=0)
    expected = FactorizedVI(FactorAnalysis(2, "diagonal"), random_state=0)
    expected.fit(table[list("abcd")])
    assert str(expected.summary()) in text
    latents = pd.read_csv("z.csv")
    assert list(latents) == ["factor0", "factor1", "factor0_sd", "factor1_sd"]
    posterior = expected.posterior(table[list("abcd")])
    # ten digits are written
    np.testing.assert_allclose(latents, np.hstack([posterior.mean, posterior.sd]), rtol=1e-9)
    loaded = skavi.load("fit.skavi")
    assert loaded.elbo_ == expected.elbo_ and list(loaded.feature_names_in_) == list("abcd")
    full = pd.read_csv("full.csv", index_col=0)
    np.testing.assert_allclose(full[list("abcd")], expected.impute(table[list("abcd")]), rtol=1e-9)
    assert list(full["species"]) == list(table["species"])
    # What was there is there to the letter.
    lines = [Path(name).read_text().splitlines() for name in ("holes.csv", "full.csv")]
    for before, after in zip(*lines, strict=True):
        pairs = zip(before.split(","), after.split(","), strict=True)
        assert all(old in ("", new) for old, new in pairs)
    assert Path("z.png").read_bytes().startswith(b"\x89PNG")


def test_groups_give_effects_and_decimal_commas_stay(capsys):
    options = ["--model", "mixed-effects", "--response", "score", "--groups", "school"]
    outputs = ["--output", "z.csv", "--impute", "full.csv", "--save", "fit.skavi"]
    main(["pupils.csv", *options, "--covariates", "ses", *outputs, "--figure", "z.svg"])
    frame = pd.read_csv("pupils.csv", sep=";", decimal=",")
    expected = FactorizedVI(MixedEffects("score", "school", fixed=["ses"]), random_state=0)
    expected.fit(frame[["ses", "score", "school"]])
    assert "latents               1 a group" in capsys.readouterr().out
    effects = pd.read_csv("z.csv")
    assert list(effects) == ["school", "intercept", "intercept_sd"]
    assert list(effects["school"]) == [f"school {g}" for g in range(6)]
    found = expected.posterior(frame[["ses", "score", "school"]])
    np.testing.assert_allclose(effects["intercept"], found.mean[:, 0], rtol=1e-6)
    full = pd.read_csv("full.csv", sep=";", decimal=",")
    gone = frame["score"].isna()
    assert not full["score"].isna().any() and list(full) == list(frame)
    # Predictions of the true linear predictor: 0.3 is the noise, and 0.1 its share in an effect.
    assert np.abs(full["score"] - SCORE)[gone].mean() < 0.5
    assert "<svg" in Path("z.svg").read_text()
    assert skavi.load("fit.skavi").elbo_ == pytest.approx(expected.elbo_, rel=1e-9)


STATES = {"component": ["component0", "component1", "most_probable"]}
STATES["state"] = ["state0", "state1", "most_probable"]


@pytest.mark.parametrize(
    ("options", "latents"),
    [
        (["holes.csv", "--model", "mixture"], STATES["component"]),
        (["holes.csv", "--model", "hidden-markov"], STATES["state"]),
        (["counts.csv", "--model", "topics", "--components", "1"], ["topic0", "topic0_sd"]),
        (
            ["counts.csv", "--likelihood", "poisson", "--amortized"],
            ["factor0", "factor1", "factor0_sd", "factor1_sd"],
        ),
        (
            ["holes.csv", "--covariates", "species", "--components", "1"],
            ["factor0", "factor0_sd"],
        ),
    ],
    ids=["mixture", "hidden-markov", "topics", "counts", "covariates"],
)
@pytest.mark.filterwarnings("ignore")  # whether these fits converge is not the command's matter
def test_each_model_writes_its_latents_and_a_figure(options, latents, monkeypatch):
    monkeypatch.setattr(FactorizedVI.__init__, "__kwdefaults__", _quick(FactorizedVI))
    main([*options, "--output", "z.csv", "--figure", "z.png"])
    found = pd.read_csv("z.csv")
    assert len(found) == 60 and list(found) == latents
    if "most_probable" in found:
        probable = found.drop(columns="most_probable").idxmax(axis=1)
        assert list(found["most_probable"]) == list(probable)
    assert Path("z.png").read_bytes().startswith(b"\x89PNG")


def _quick(cls):
    return cls.__init__.__kwdefaults__ | {"max_iter": 5, "n_init": 1}


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_parquet_is_read_and_written_as_csv_is(library, monkeypatch, capsys):
    monkeypatch.setattr(table_files, "_frames", lambda: library)
    csv, parquet = (table_files.read(f"holes.{end}", ["species"]) for end in ("csv", "parquet"))
    np.testing.assert_array_equal(parquet.X, csv.X)
    assert parquet.columns == csv.columns and parquet.named == csv.named
    outputs = ["--impute", "full.parquet", "--output", "z.parquet"]
    main(["holes.parquet", "--components", "1", *outputs])
    full = pd.read_parquet("full.parquet")
    assert list(full) == [*"abcd", "species"] and not full.isna().any().any()
    assert str(full["a"].dtype) == "float64"
    assert list(polars.read_parquet("z.parquet").columns) == ["factor0", "factor0_sd"]
    Path("bad.parquet").write_text("a,b\n1,2\n")
    assert "bad.parquet cannot be read" in refused(["bad.parquet"], capsys)


def test_kinds_of_columns_in_parquet(monkeypatch):
    frame = pd.DataFrame({"flag": [True, False] * 6, "n": np.arange(12), "x": np.arange(12) % 5.0})
    frame["day"] = pd.to_datetime("2020-01-01") + pd.to_timedelta(np.arange(12), "D")
    frame["n"] = frame["n"].astype("Int64").where(frame["n"] != 3)
    frame.index = pd.Index([f"row {i}" for i in range(12)], name="key")
    frame.to_parquet("kinds.parquet")
    table = table_files.read("kinds.parquet")
    assert table.columns == ["flag", "n", "x"]
    assert np.isnan(table.X[3, 1]) and list(table.X[:2, 0]) == [1, 0]
    assert {name for name, _ in table.left_out} == {"key", "day"}


def test_without_a_library_parquet_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(table_files, "_frames", lambda: None)
    for options in (["holes.parquet"], ["holes.csv", "--output", "z.parquet"]):
        assert 'pip install "skavi[parquet]"' in refused(options, capsys)


def test_without_pandas_columns_have_places(monkeypatch, capsys):
    find = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name == "pandas" else find(name)
    )
    options = ["--model", "mixed-effects", "--response", "score", "--groups", "school"]
    main(["pupils.csv", *options, "--output", "z.csv", "--impute", "full.csv"])
    assert list(pd.read_csv("z.csv")["school"]) == [f"school {g}" for g in range(6)]
    assert not pd.read_csv("full.csv", sep=";", decimal=",")["score"].isna().any()


REFUSED = {
    "a column that is not there": (["--covariates", "e"], "has no column 'e'; it has 'column 1'"),
    "a column twice": (["--covariates", "a,a"], "names a column twice"),
    "an empty name": (["--covariates", "a,,b"], "names no column somewhere"),
    "a model of none": (["--model", "pca"], "invalid choice: 'pca'"),
    "a likelihood of none": (["--likelihood", "gamma"], "invalid choice: 'gamma'"),
    "an option of another model": (
        ["--model", "topics", "--impute", "z.csv"],
        "--impute is not for --model topics, but for factor-analysis, decoder, mixture",
    ),
    "groups of none": (["--groups", "species"], "is not for --model factor-analysis, but for hid"),
    "no response": (["--model", "mixed-effects"], "--model mixed-effects needs --response NAME"),
    "components of effects": (
        ["--model", "mixed-effects", "--response", "a", "--groups", "b", "--components", "2"],
        "--components is not for --model mixed-effects",
    ),
    "an output that exists": (["--save", "counts.csv"], "--save counts.csv exists: choose"),
    "the input": (["--impute", "holes.csv", "--force"], "--impute holes.csv is the input file"),
    "one file twice": (["--impute", "z", "--save", "z"], "--impute z and --save z are one file"),
    "no folder": (["--save", "no/z"], "--save no/z cannot be written: No such file"),
    "a spreadsheet": (["--impute", "z.xlsx"], "z.xlsx: tables are written as CSV, or as .parquet"),
    "more factors than columns": (
        ["--save", "z", "--components", "5"],
        "must be from 1 to 4 for 60",
    ),
    "no component": (["--model", "mixture", "--components", "0"], "must be from 1 to 60 for 60"),
    "a figure of no kind": (["--save", "z", "--plot", "z.xyz"], "its ending must name a format"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_are_refused_before_any_work(name, capsys, folder, monkeypatch):
    monkeypatch.setattr(FactorizedVI, "fit", None)  # calling it would fail otherwise
    before = sorted(os.listdir())
    options, message = REFUSED[name]
    assert message in refused(["holes.csv", *options], capsys)
    assert sorted(os.listdir()) == before


def test_what_the_model_refuses_is_one_sentence(capsys):
    assert "holes.csv cannot be fitted: " in refused(["holes.csv", "--model", "topics"], capsys)
    assert "missing" in refused(["holes.csv", "--covariates", "a"], capsys)
    Path("gaps.csv").write_text("g,x\n" + "u,1\n,2\nv,4\n" * 4)
    options = ["--model", "mixed-effects", "--response", "x", "--groups", "g"]
    assert "column 'g' has no label in line 3" in refused(["gaps.csv", *options], capsys)
    Path("twice.csv").write_text("g,g,x\n" + "1,2,1\n3,4,2\n" * 6)
    assert "has 2 columns 'g'" in refused(["twice.csv", "--covariates", "g"], capsys)


def test_amortized_is_amortized():
    main(["holes.csv", "--components", "1", "--amortized", "--save", "fit.skavi"])
    assert isinstance(skavi.load("fit.skavi"), AmortizedVI)


def test_a_pipe_gets_no_bar_and_warnings_are_lines(folder):
    """In a process of its own, as a user's shell runs it."""
    Path("short.csv").write_text("x,y\n" + "".join(f"{i % 7},{i * i % 5}\n" for i in range(40)))
    root = Path(command.__file__).parents[1]
    process = subprocess.run(
        [sys.executable, "-m", "skavi", "short.csv", "--components", "1", "--save", "fit"],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "fit ━" not in process.stdout and "\x1b" not in process.stdout
    assert "progress" not in process.stdout and process.stdout.endswith("Fit: fit\n")
    assert all(
        line.startswith("python -m skavi: warning: ") for line in process.stderr.splitlines()
    )


def test_the_name_in_messages_is_the_one_that_was_called(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/skavi"])
    assert arguments.parser().prog == "skavi"
    monkeypatch.setattr(sys, "argv", ["/somewhere/skavi/__main__.py"])
    assert arguments.parser().prog == "python -m skavi"


def test_the_version_is_that_of_the_library(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"skavi {skavi.__version__}\n"


@pytest.mark.parametrize(
    ("ends", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 1), (None, 0)]
)
def test_exit_codes_are_those_of_the_help(monkeypatch, ends, code):
    def work():
        if ends is not None:
            raise ends
        return 0

    monkeypatch.setattr(command, "main", work)
    monkeypatch.setattr(command.os, "dup2", lambda *descriptors: None)
    monkeypatch.setattr(command.warnings, "formatwarning", None)
    with pytest.raises(SystemExit) as stop:
        command.run()
    assert stop.value.code == code
    assert str(code) in arguments.parser().format_help().partition("exit codes:")[2]


def test_one_fit_needs_no_rows_to_test_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = ["1,2", "2,4.5", "3,", "4,8.2"]
    Path("few.csv").write_text("\n".join(["a,b", *rows, ""]))
    main(["few.csv", "--impute", "full.csv"])
    assert len(Path("full.csv").read_text().splitlines()) == 5
    Path("one.csv").write_text("a,b\n1,2\n")
    assert "no column of numbers that differ" in refused(["one.csv", "--impute", "z.csv"], capsys)


def test_files_are_written_before_the_page_is_read(tmp_path, monkeypatch):
    """A reader that closes the pipe at the first line, as ``head -1`` does, ends nothing else."""
    monkeypatch.chdir(tmp_path)
    Path("few.csv").write_text("a,b\n1,2\n2,4.5\n3,\n4,8.2\n")

    class Closed:
        def write(self, text):
            if "====" in text:
                raise BrokenPipeError

        def flush(self):
            pass

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        main(["few.csv", "--impute", "full.csv"])
    assert len(Path("full.csv").read_text().splitlines()) == 5
