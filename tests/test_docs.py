"""The documentation builds without a warning, offline, and its notebooks run.

The code on its pages runs as doctests of their own (``docs`` is in pytest's testpaths).
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from seeds import seeds

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in DOCS.rglob("*.rst")
    if not {"_build", "auto_examples", "generated", "_templates", "gallery"} & set(path.parts)
)
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
HTML = ["sphinx", "numpydoc", "pydata_sphinx_theme", "sphinx_gallery", "sphinx_design", "myst_nb"]
NEEDED = {"html": HTML, "nb": ["nbmake"]}


#: What people search for, and the page that they should be led to.
SOUGHT = {
    "missing values": "howto/missing",
    "clustering": "howto/clusters",
    "irt": "howto/surveys",
    "mixed model": "howto/groups",
    "batch effect": "howto/covariates",
    "vae": "howto/autoencoder",
    "confidence interval": "howto/trust",
    "elbo": "explanation/elbo",
}


def require(kind):
    for name in NEEDED[kind]:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'{name} is not installed: pip install -e ".[docs]"')


def run(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


class Page(HTMLParser):
    """A page's links and pictures, and the places in it that a link can lead to."""

    def __init__(self, html):
        super().__init__()
        self.links, self.places = [], {""}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places |= {attrs.get("id"), attrs.get("name")}
        self.links += [attrs[key] for key in ("href", "src") if attrs.get(key)]


def dead_links(site):
    """Return (page, link) of local links that lead nowhere, and of others without an address."""
    paths = [path for path in site.rglob("*.html") if "_static" not in path.parts]  # the theme's
    pages = {path: Page(path.read_text()) for path in paths}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            target, place = urldefrag(link)
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                found = parts.scheme in ("https", "data") and bool(parts.netloc or parts.path)
            else:
                other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                found = other.exists() and (other not in pages or place in pages[other].places)
            if not found:
                dead.append((str(path.relative_to(site)), link))
    return dead


def search_finds_first(index):
    """Return the page of each term's main index entry, which Sphinx's search shows first."""
    text = index.read_text()
    found = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    entries = {term: found["indexentries"].get(term, []) for term in SOUGHT}
    pages = {term: [page for page, _, main in hits if main] for term, hits in entries.items()}
    return {term: found["docnames"][hits[0]] for term, hits in pages.items() if len(hits) == 1}


def test_dead_links_are_found(tmp_path):
    (tmp_path / "b.html").write_text('<p id="here">')
    links = ["b.html#here", "b.html", "#top", "b.html#gone", "c.html", "https://x.org", "http:y"]
    body = "".join(f'<a href="{link}"></a>' for link in links)
    (tmp_path / "a.html").write_text(f'<p id="top">{body}')
    found = [link for _, link in dead_links(tmp_path)]
    assert found == ["b.html#gone", "c.html", "http:y"]


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    require("html")
    # A copy, for the build writes generated pages beside the sources.
    source = tmp_path / "docs"
    subprocess.run(["cp", "-r", str(DOCS), str(source)], check=True)
    for left_over in ("generated", "auto_examples", "_build"):
        subprocess.run(["rm", "-rf", str(source / left_over)], check=True)
    run("sphinx", "-W", "-b", "html", str(source), str(tmp_path / "html"))
    for page in ("index", "reference/index", "auto_examples/index", "generated/skavi.FactorizedVI"):
        assert (tmp_path / "html" / f"{page}.html").exists()
    assert search_finds_first(tmp_path / "html" / "searchindex.js") == SOUGHT
    assert not dead_links(tmp_path / "html")


@pytest.mark.slow
@pytest.mark.parametrize("path", seeds(*NOTEBOOKS), ids=lambda path: path.stem)
def test_notebooks_run(path):
    require("nb")
    out = run(
        "pytest", "-q", "--nbmake", "--nbmake-timeout=300", "-p", "no:cacheprovider", str(path)
    )
    assert "1 passed" in out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_as_they_ran(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "execute_result" in kinds and not kinds & {"error", "stream"}
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_pages_are_in_a_table_of_contents_and_show_no_code_untested(page):
    tables = "\n".join(other.read_text() for other in PAGES)
    name = page.relative_to(DOCS).with_suffix("").as_posix()
    entry = rf"^   ({re.escape(name)}|{re.escape(page.stem)}|{re.escape(name)}/index)$"
    assert page.name == "index.rst" or re.search(entry, tables, re.MULTILINE), f"{name} is lost"
    untested = len(re.findall(r"code-block:: python", page.read_text()))
    # Six blocks are other libraries', which the tests do not install.
    assert untested == (6 if page.stem == "migration" else 0)


@pytest.mark.parametrize("page", ["contributing.rst", "explanation/one_fit.rst"])
def test_pages_on_the_code_name_what_is_there(page):
    """Files by their path from the root; classes and functions by a word of some source."""
    named = re.findall(r"``([^`\s]+)``", (DOCS / page).read_text())
    paths = [name for name in named if "/" in name]
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]
    sources = [*(ROOT / "skavi").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    words = {word for path in sources for word in re.findall(r"\w+", path.read_text())}
    names = [name.removesuffix("()") for name in named if re.fullmatch(r"[\w.]+(\(\))?", name)]
    assert not [name for name in names if not words.issuperset(name.split("."))]


def measured(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def figures():
    """Return what the results of benchmarks/ say, in the words of docs/beside.rst."""
    *jobs, ratios = measured("specialists")["tables"]
    values = [{row[0]: row[1] for row in table["rows"]} for table in jobs]
    times = [row[2] for row in ratios["rows"]]  # of the processor, in the jobs' order
    _, answers, _, groups, numbers, holes = values
    yield f"{numbers['sklearn FactorAnalysis']:.2f} - {numbers['skavi F-VI']:.2f} - {times[4]:.1f}"
    yield f"{holes['IterativeImputer']:.3f} - {holes['skavi F-VI']:.3f} - {times[5]:.2f}"
    yield f"{answers['skavi F-VI']:.3f} a row, girth {answers['girth']:.3f} without priors"
    yield f"{answers['girth, priors']:.3f} with them; {times[1]:.1f} times"
    yield f"{groups['skavi F-VI']:.3f} a row as MixedLM's {groups['MixedLM']:.3f}; {times[3]:.1f}"
    *jobs, ratios = measured("counts_and_outliers")["tables"]
    _, counts, many, two, five, outliers = ({row[0]: row[1:] for row in t["rows"]} for t in jobs)
    times = [row[2] for row in ratios["rows"]]
    theirs, ours = counts["PlnPCA"][0], counts["skavi F-VI"][0]
    yield f"{theirs:.2f} - {ours:.2f} - {times[1]:.2f}"
    theirs, ours = many["PlnPCA"][0], many["skavi F-VI"][0]
    yield f"take {times[2]:.2f} times the time of ``PlnPCA`` for {ours:.2f} a row"
    yield f"a row (its {theirs:.2f})"
    for values, time in ((two, times[3]), (five, times[4])):
        theirs, ours = values["GLM-PCA"][0], values["skavi F-VI"][0]
        yield f"{theirs:.2f} - {ours:.2f} - {time:.0f}"
    yield f"seconds above ({two['skavi F-VI'][2]:.0f} and {five['skavi F-VI'][2]:.0f})"
    normal, ours = outliers["sklearn FactorAnalysis"], outliers["skavi F-VI"]
    yield f"take {ours[2]:.1f} s where"
    yield f"miss is {ours[0] - normal[0]:.1f} nats"
    *jobs, ratios = measured("given_columns")["tables"]
    oaks, _, cells, _, crossings, _, _ = ({row[0]: row[1] for row in t["rows"]} for t in jobs)
    times = [row[2] for row in ratios["rows"]]
    for values, time in ((cells, times[1]), (oaks, times[0])):
        yield f"{values['PlnPCA']:.2f} - {values['skavi F-VI']:.2f} - {time:.2f}"
    ours, theirs = (crossings[name] for name in ("skavi F-VI", "PlnPCA"))
    yield f"{ours:.3f} a row, pyPLNmodels {theirs:.3f}, at {times[2]:.2f} times"
    ours, theirs = (measured("topics")["10"][name] for name in ("F-VI", "LDA batch"))
    ratio = ours["fit_processor_seconds"] / theirs["fit_processor_seconds"]
    yield f"{theirs['perplexity']:.1f} - {ours['perplexity']:.1f} - {ratio:.2f}"
    chains = measured("hidden_markov")
    for steps in ("2000", "10000"):
        runs = [run for name, run in chains.items() if name.startswith(f"{steps} ")]
        ratio = [run["skavi"]["seconds"] / run["hmmlearn"]["seconds"] for run in runs]
        yield f"{min(ratio):.1f} to {max(ratio):.1f} times"
    mixtures = list(measured("mixtures").values())
    ratio = [run["skavi"]["seconds"] / run["scikit-learn"]["seconds"] for run in mixtures]
    yield f"mixtures take {min(ratio):.1f} to {max(ratio):.1f} times"
    above = sum(run["skavi"]["held_out"] > run["scikit-learn"]["held_out"] for run in mixtures)
    yield f"``BayesianGaussianMixture`` in {above} of {len(mixtures)}"
    holes = [dict(run["with_holes"]) for run in mixtures if "with_holes" in run]
    above = sum(run.pop("skavi") > max(run.values()) for run in holes)
    yield f"after imputation in {above} of {len(holes)}"
    runs = measured("imputation")["runs"]
    digits = next(run for run in runs if (run["table"], run["share"]) == ("digits", 0.3))
    yield f"{digits['KNNImputer']['rmse']:.3f} sds, skavi {digits['skavi']['rmse']:.3f}"


def test_figures_beside_the_specialists_are_those_measured():
    page = " ".join((DOCS / "beside.rst").read_text().split())
    found = list(figures())
    assert len(found) == 23
    assert not [figure for figure in found if figure not in page]
