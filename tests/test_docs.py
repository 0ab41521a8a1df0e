"""Pages hold what exists: commands their flags and fields, the reference of fields every field with a comment."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jaxseg.settings import reference
from launch import cli
from tests.conftest import ROOT

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


def test_the_default_config_explains_fields_as_the_schema_does():
    assert all(field.comment for field in reference.fields())
    done = subprocess.run([sys.executable, "-m", "tools.default_comments", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "python -m tools.default_comments writes the comments of configs/default.py"


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
