"""The names that jaxseg offers by itself: explicit, typed, and imported on demand."""

import ast
import subprocess
import sys

import pytest

import jaxseg
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text()
FUNCTIONS = sorted(set(jaxseg.__all__) - {"__version__"})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_documented_and_shown_in_use(name):
    assert getattr(jaxseg, name).__doc__
    assert f"jaxseg.{name}(" in PAGE


def test_type_checkers_and_python_find_the_same_names_in_the_same_places():
    tree = ast.parse((ROOT / "jaxseg" / "__init__.py").read_text())
    typed = {
        node.module.removeprefix("jaxseg."): tuple(alias.name for alias in node.names)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("jaxseg.")
    }
    assert typed == jaxseg._HOMES
    assert sorted(name for names in typed.values() for name in names) == FUNCTIONS


def test_importing_the_package_loads_nothing_else():
    program = "import sys, jaxseg; print(sorted({name.split('.')[0] for name in sys.modules} & {*sys.argv[1:]}))"
    heavy = ["jax", "numpy", "orbax", "pandas", "tensorflow", "tensorflow_datasets"]
    command = [sys.executable, "-c", program, *heavy]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"


def test_another_name_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'train_network'"):
        jaxseg.train_network  # noqa: B018
    assert set(dir(jaxseg)) == set(jaxseg.__all__)
