"""Sphinx configuration: MyST pages and the API from the docstrings."""

import stellarfit

project = "stellarfit"
author = "The stellarfit developers"
copyright = "2026, the stellarfit developers"
version = release = stellarfit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_static_path = ["_static"]
html_title = "stellarfit"

napoleon_google_docstring = False
napoleon_use_rtype = False
# Shapes and units are in the docstrings; jaxtyping's annotations are unreadable in signatures.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "code"
