"""Sphinx configuration: ``sphinx-build -W -b html docs docs/_build/html``, without a network."""

import inspect
import os
import pydoc
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.docutils import ReferenceRole

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import skavi
from skavi._component import Component
from skavi.models import LatentVariableModel

project = "skavi"
author = "skavi developers"
copyright = "skavi developers"
version = release = skavi.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "myst_nb",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "gallery", "auto_examples/**.ipynb", "conftest.py"]
default_role = "name"
# Every reference to Python must resolve.
nitpicky = True
smartquotes = False  # what stands in quotes is mostly a Python string, to be copied

autosummary_generate = True
autodoc_inherit_docstrings = False
autodoc_typehints = "none"
toc_object_entries_show_parents = "hide"
html_math_renderer = "mathml"  # browsers draw it by themselves, without a network
nb_execution_mode = "off"  # the notebooks are kept as they ran, and a test runs them
copybutton_exclude = ".linenos, .gp, .go"  # the input of an example, without prompts
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_.*\.py",
    "subsection_order": "gallery_order.section",
    "within_subsection_order": "gallery_order.Example",
    "backreferences_dir": "generated/examples",
    "doc_module": ("skavi",),
    "abort_on_example_error": True,
    "plot_gallery": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "ignore_repr_types": r"skavi\.displays",  # the picture is the output
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"skavi {version}"
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
# They have no pages below them.
html_sidebars = {name: [] for name in ("beside", "changelog", "contributing", "migration")}
html_show_sourcelink = False


def _is_scikit_learns(app, what, name, member, skip, options):
    """Leave out what scikit-learn documents: routing, set_output and the like."""
    theirs = str(getattr(member, "__module__", "")).startswith("sklearn")
    return True if theirs or name.endswith("_request") else None


def _listed():
    """Return full names by short name, of all that the reference pages list."""
    names = {}
    for page in sorted((Path(__file__).parent / "reference").glob("*.rst")):
        module = None
        for line in page.read_text().splitlines():
            if found := re.fullmatch(r"\.\. currentmodule:: (\S+)", line):
                module = found[1]
            elif module and (found := re.fullmatch(r"   (\w+)", line)):
                names[found[1]] = f"{module}.{found[1]}"
    return names


LISTED = _listed()


def _listed_ancestors(kind):
    """Return the listed classes that a class is made from, nearest first, and the class itself."""
    return [ancestor for ancestor in kind.__mro__ if ancestor.__name__ in LISTED]


def _derived():
    """Return full names of listed classes that are made from another listed class."""
    found = {name: pydoc.locate(name) for name in LISTED.values()}
    classes = {name: kind for name, kind in found.items() if inspect.isclass(kind)}
    return {name for name, kind in classes.items() if len(_listed_ancestors(kind)) > 1}


#: What a model of one's own may say, and what is read from a fitted one.
WRITTEN = {
    "n_latents", "global_prior", "local_prior", "initial_prior", "transition", "likelihood",
    "log_likelihood", "log_joint", "log_local", "adapted", "check_data",
}  # fmt: skip
READ = {"proportions", "word_probabilities", "top_words", "n_used_components"}


def _shown():
    """Return the members that a component's page has, by full name: not how a fit works inside."""
    shown = {}
    for name in LISTED.values():
        kind = pydoc.locate(name)
        if not (inspect.isclass(kind) and issubclass(kind, Component)):
            continue
        first = len(_listed_ancestors(kind)) == 1  # made for others to be made from it
        base = first or inspect.isabstract(kind)
        if issubclass(kind, LatentVariableModel):
            wanted = (WRITTEN if base else READ) & set(dir(kind))
        else:
            wanted = {
                key for key, value in vars(kind).items() if first and inspect.isfunction(value)
            }
        shown[name] = sorted(key for key in wanted if not key.startswith("_"))
    return shown


autosummary_context = {"derived": _derived(), "shown": _shown()}


class Name(ReferenceRole):
    """What single backticks mean: a link where the reference lists the name, else code.

    A plain word (fit, total) is also a method or an attribute somewhere: it links in full only.
    """

    def run(self):
        short, _, member = self.target.removesuffix("()").partition(".")
        if short in LISTED and ("_" in short or not short.islower()):
            target = LISTED[short] + (f".{member}" if member else "")
        elif self.target in LISTED.values():
            target = self.target
        else:
            return [nodes.literal(self.rawtext, self.title)], []
        role = self.env.domains.python_domain.role("obj")
        content = f"{self.title} <{target}>"
        return role("py:obj", self.rawtext, content, self.lineno, self.inliner, {}, [])


def _public_bases(app, name, obj, options, bases):
    """Show a private base class as the first public one that it is made from, or not at all."""
    bases[:] = list(dict.fromkeys(kind for base in bases for kind in _listed_ancestors(base)[:1]))


#: A named function such as log, which TeX keeps apart from a symbol before or after it.
NAMED = re.compile(
    r"(</m(?:i|n|sub|sup)>\s*)?(<mi>[a-z]+</mi>\s*)<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>\()"
)
SPACE = '<mspace width="0.17em"/>'


def _mathml(writer, node):
    """Write a formula as MathML, with the spaces around named functions that browsers leave out."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    formula = NAMED.sub(
        lambda found: (found[1] + SPACE if found[1] else "") + found[2] + SPACE, formula
    )
    writer.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def setup(app):
    app.add_role("name", Name())
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
    app.connect("autodoc-skip-member", _is_scikit_learns)
    app.connect("autodoc-process-bases", _public_bases)
