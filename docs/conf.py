"""Sphinx configuration: ``sphinx-build -W -b html docs docs/_build/html``, without a network."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import skavi

project = "skavi"
author = "skavi developers"
copyright = "skavi developers"
version = release = skavi.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "notebooks", "gallery", "conftest.py"]
default_role = "autolink"

autosummary_generate = True
autodoc_inherit_docstrings = False
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_.*\.py",
    "abort_on_example_error": True,
    "plot_gallery": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "skavi"
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}
html_show_sourcelink = False


def _is_scikit_learns(app, what, name, member, skip, options):
    """Leave out what scikit-learn documents: routing, set_output and the like."""
    theirs = str(getattr(member, "__module__", "")).startswith("sklearn")
    return True if theirs or name.endswith("_request") else None


def setup(app):
    app.connect("autodoc-skip-member", _is_scikit_learns)
