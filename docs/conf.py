"""Sphinx's settings: sphinx-build -W --keep-going -b html docs docs/_build/html"""

import re

import rlx

project = "rlx"
author = "The rlx developers"
version = release = rlx.__version__
html_theme = "furo"
html_title = f"rlx {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

autodoc_typehints = "signature"
autodoc_class_signature = "separated"


def as_rst(app, what, name, obj, options, lines):
    """The docstrings are plain text with `code` in single backticks: escape the rest."""
    text = "\n".join(lines)
    parts = re.split(r"`([^`]+)`", text)
    for number, part in enumerate(parts):
        if number % 2:
            parts[number] = f"``{part}``"
        else:
            parts[number] = re.sub(r"([*|\\])", r"\\\1", part)
    lines[:] = "".join(parts).split("\n")


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", as_rst)
