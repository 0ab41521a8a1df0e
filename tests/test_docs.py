"""Pages hold what exists: commands their flags and fields, the reference of fields every field with a comment."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from configs import default
from launch import cli
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def commands() -> list[tuple[str, str]]:
    """Every `python -m launch.NAME ...` of a bash block with a config, by page."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if "launch." in line and "--config=" in line:
                    found.append((str(page.relative_to(ROOT)), line[line.index("python -m launch.") :]))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_sets_fields_that_exist(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    assert Path("launch", f"{words[2].removeprefix('launch.')}.py").is_file()
    assert cli.parse_config(cli.config_words(words)).name


def test_the_reference_has_every_field_with_a_comment():
    declared_fields = importlib.import_module("declared_fields")
    fields = {f.name: f.comment for f in declared_fields.read_fields(declared_fields.SOURCE.read_text())}

    def names(tree, prefix=""):
        for key, value in tree.items():
            yield from names(value, f"{prefix}{key}.") if hasattr(value, "items") else [prefix + key]

    declared = {name for name in names(default.get_config()) if not name.startswith(("source.", "arms."))}
    declared |= {f"arms.NAME.{name}" for name in default.arm("random", "none")}
    assert {name for name in fields if not name.startswith("source.")} == declared
    assert [name for name, comment in fields.items() if not comment] == []


def listed_members() -> list[tuple[str, str, str]]:
    """Every name that a page of the Python reference asks for: page, module, name; the module alone as ''."""
    found = []
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for module, options in re.findall(r"\.\. automodule:: (\S+)\n((?:   :.*\n)*)", page.read_text()):
            names = re.search(r":members: (.+)", options)
            found += [(page.name, module, "")]
            found += [(page.name, module, name.strip()) for name in (names[1].split(",") if names else ())]
        for name in re.findall(r"\.\. auto(?:function|class|data)::? (\S+)", page.read_text()):
            found.append((page.name, *name.rpartition(".")[::2]))
    return found


@pytest.mark.parametrize(("page", "module", "name"), listed_members())
def test_what_the_reference_lists_exists(page, module, name):
    found = importlib.import_module(module)
    assert not name or getattr(found, name).__doc__
