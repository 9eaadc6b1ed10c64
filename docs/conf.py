"""Sphinx reads this: `make docs` builds the site into build/docs, of the pages in this folder and of docstrings."""

from __future__ import annotations

import sys
from pathlib import Path

from fastanc import __version__

sys.path.insert(0, str(Path(__file__).parent / "site"))

project = "fastanc"
author = "The fastanc authors"
release = version = __version__
copyright = "the fastanc authors; Apache-2.0"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
exclude_patterns = ["site"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # their outputs are stored; tests/test_notebooks.py runs them

smartquotes = False  # options keep their dashes
default_role = "literal"  # what stands between single backticks in a docstring is code
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"fastanc {__version__}"
html_copy_source = False
