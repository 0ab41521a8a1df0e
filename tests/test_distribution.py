"""What is handed out: versions agree, dependencies are declared, wheel and sdist stand alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DATA_FILES = {"jaxseg/py.typed", "jaxseg/report/style.css", "jaxseg/report/template.html"}

# Names of packages that are imported under another one.
IMPORTED_AS = {
    "absl-py": "absl",
    "tensorflow-datasets": "tensorflow_datasets",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
}

IMPORT_ALL = """
import pkgutil, sys
import jaxseg

for module in pkgutil.walk_packages(jaxseg.__path__, "jaxseg."):
    if module.name != "jaxseg.exports.torch_network":  # the only module that needs PyTorch
        __import__(module.name)
from jaxseg.report import page

assert jaxseg.__version__ == sys.argv[1], jaxseg.__version__
print(jaxseg.__file__)
"""


def test_one_version_everywhere():
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changes = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation is not None
    assert changes is not None
    assert citation[1] == changes[1] == PROJECT["version"]


def test_what_jaxseg_imports_is_a_declared_dependency():
    extras = [
        line for name in ("import", "export", "formats", "buckets") for line in PROJECT["optional-dependencies"][name]
    ]
    declared = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"] + extras}
    allowed = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in declared}
    used = set()
    for path in (ROOT / "jaxseg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add(node.module.split(".")[0])
    assert used - set(sys.stdlib_module_names) - {"jaxseg"} <= allowed


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, the wheel made from it, and the wheel made from the tree, of a copy without anything built before."""
    folder = tmp_path_factory.mktemp("distribution")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("docs/", "tests/")):
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    for arguments in (["--outdir=sdist"], ["--outdir=direct", "--wheel"]):  # the first makes the wheel from the sdist
        subprocess.run([sys.executable, "-m", "build", *arguments, "tree"], cwd=folder, check=True, capture_output=True)
    (sdist,), (wheel,), (direct,) = (folder.glob(f) for f in ("sdist/*.tar.gz", "sdist/*.whl", "direct/*.whl"))
    return {"sdist": sdist, "wheel": wheel, "direct": direct}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_the_wheel_ships_jaxseg_alone_with_its_data_files(built):
    names = {name for name in contents(built["wheel"]) if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxseg").rglob("*.py")}
    assert names == modules | DATA_FILES


@pytest.mark.slow
def test_the_sdist_builds_the_wheel_that_the_tree_builds(built):
    assert contents(built["wheel"]) == contents(built["direct"])
    with tarfile.open(built["sdist"]) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {
        "benchmarks/training.py",
        "configs/quickstart.py",
        "launch/study.py",
        "launch/slurm.sbatch",
        "launch/Dockerfile",
        "launch/jobset.yaml",
        "LICENSE",
        "CITATION.cff",
    } <= names
    assert not any(name.startswith(("docs", "simulated", "tests", "tools")) for name in names)


def import_all(python: str | Path, folder: Path, **environment: str) -> Path:
    """Imports every module far from the clone; returns where jaxseg was found."""
    ran = subprocess.run(
        [python, "-P", "-c", IMPORT_ALL, PROJECT["version"]],
        cwd=folder,
        env={"PATH": "", "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return Path(ran.stdout.strip())


@pytest.mark.slow
def test_the_wheel_imports_from_another_folder(built, tmp_path):
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={target}", built["wheel"]]
    subprocess.run(pip, check=True)
    assert import_all(sys.executable, tmp_path, PYTHONPATH=str(target)).is_relative_to(target)


@pytest.mark.slow
def test_the_wheel_brings_all_it_needs_to_a_fresh_environment(built, tmp_path):
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", built["wheel"]], check=True)
    assert import_all(python, tmp_path).is_relative_to(environment)
