"""Sphinx's settings for these pages: `sphinx-build -W docs build/docs`."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]

project = "jaxseg"
author = "jaxseg developers"
copyright = "jaxseg developers"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "config_fields",
]
# The rest is included by other pages.
exclude_patterns = ["_ext", "studies/over_targets", "studies/*/found.md", "studies/controls"]
templates_path: list[str] = []

# Single backticks in docstrings are code. Types of other packages have no page here.
default_role = "literal"
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(jax|jaxlib|numpy|np|optax|flax|nn|pandas|pd|collections|typing|pathlib|jaxtyping)\..*"),
    ("py:.*", r"(Array|Params|Path|Any|Callable|Sequence|Mapping|Iterator|Frozen|Metrics|Cohort|optional).*"),
]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
viewcode_line_numbers = True

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebook needs a finished study; tests/study/test_notebook.py runs it

html_theme = "furo"
html_title = f"jaxseg {release}"
html_static_path = ["_static"]
html_css_files = ["wide_tables.css"]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"


def escape(text: str) -> str:
    """A docstring's text with what reStructuredText would take for a reference escaped; code in backticks is kept."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = [re.sub(r"\||(?<=\w)_(?=\W|$)", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(part for pair in zip(plain, [*parts[1::2], ""], strict=True) for part in pair)


def setup(app: Any) -> None:
    """Docstrings are plain text with code in backticks; napoleon takes `Gaussian noise: ...` of a field for a type."""
    fields: dict[str, list[str]] = {}

    def before(_app: Any, what: str, name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
        lines[:] = escape("\n".join(lines)).split("\n")
        if what in ("attribute", "data", "property"):
            fields[name] = list(lines)

    def after(_app: Any, what: str, name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
        if what in ("attribute", "data", "property"):
            lines[:] = fields.pop(name)

    app.connect("autodoc-process-docstring", before, priority=400)
    app.connect("autodoc-process-docstring", after, priority=600)
