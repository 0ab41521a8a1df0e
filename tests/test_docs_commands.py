"""Every command of the documentation runs, as a reader would give it, on small sets and with few steps."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

import jaxseg
from jaxseg import settings
from tests import image_sets, programs
from tests.conftest import ROOT
from tests.imports import weight_files

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = (
    *("pip", "python3", "pytest", "ruff", "mypy", "sphinx-build", ".ci/run", "mkdir"),
    *("docker", "sbatch", "launch/tpu_pod.sh", "benchmarks/gpu.sh"),
)
"""Not run here: .ci/run runs most of them; the last four need a daemon, a cluster or a GPU, and tests/launch checks
their text or what they start."""
SMALL = {
    "num_seeds": "2",
    "model.widths": "(2, 4, 8)",  # of multiscale_fcn they double
    **{"train.steps": "4", "train.log_every": "2", "train.eval_every": "2", "train.save_every": "2"},
    **{"pretrain.steps": "4", "optim.warmup_steps": "1", "report.examples": "1"},
}
LESS = {
    "benchmarks.accuracy": ["--dry_run"],
    "benchmarks.planned": ["--dry_run"],
    "tools.verify": ["--only=no such claim", "--results=results.json", "--page=page.md"],
}
"""Options that let a program do little."""
VOLUMES = ("TARGET", "SOURCE", "Task04_Hippocampus", "Task02_Heart", "TO/FOLDER", "TO/CARDIAC_FOLDER")
SETS = ("hippocampus_mr", "rodent_brain_epi", "cardiac_ed_mr", "cardiac_es_mr")
IMAGES = ("nerve_us", "fetal_head_us", "lung_tumour_ct", "nuclei_micro")
FINISHED = ("quickstart", "mine", "NAME", "short", "hippocampus", "nerve", "ed", "es", "c3/hippocampus_mr")
"""Studies that commands other than launch.study find in runs/."""


def commands() -> list[tuple[str, str]]:
    """Every command of a bash block that begins with a program, by page."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and not words[0].startswith("--"):
                    found += [(str(page.relative_to(ROOT)), " ".join(part.split())) for part in line.split("&&")]
    return found


def program(command: str) -> str:
    """The first word that is no setting of the environment."""
    return next(word for word in command.split() if "=" not in word)


IN_A_BUCKET = "=gs://"
"""Part of commands that need a bucket; those of tests/buckets have one."""
RUN = [(page, command) for page, command in commands() if program(command) == "python" and IN_A_BUCKET not in command]


def reduced(page: str, words: list[str]) -> list[str]:
    """The command with less to do: small networks, few steps; what takes hours is only planned or left out."""
    words = words + LESS.get(words[2], [])
    if words[2] not in ("launch.study", "launch.sweep") or "--stages=plan" in words:
        return words
    words = [word for word in words if word.split("=")[0].removeprefix("--config.") not in SMALL]
    words += [f"--config.{field}={value}" for field, value in SMALL.items()]
    staged = any(word.startswith("--stages") for word in words)
    if (page.startswith("docs/studies/") and not staged) or "--cluster=slurm" in words:
        words.append("--dry_run")
    return words


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with image sets; each page's reader has one of their own beside it."""
    folder = tmp_path_factory.mktemp("reader")
    volumes = {
        f"case_{index:02}": image_sets.make_volume(index, (12, 11, 10)) for index in range(90)
    }  # the largest size a page asks for is 64
    for name in (".", *VOLUMES, *SETS):
        image_sets.write_set(folder / "PATH" / name, volumes)
    images = {name: (image[..., :1], label[..., :1]) for name, (image, label) in volumes.items()}
    for name in IMAGES:
        image_sets.write_set(folder / "PATH" / name, images, tensorImageSize="2D")
    return folder


@pytest.fixture(scope="module")
def owner(tiny_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished studies, a published one, images and label maps."""
    folder = tmp_path_factory.mktemp("owner")
    for name in FINISHED:
        shutil.copytree(tiny_study, folder / "runs" / name)
    programs.run("tools.publish_study", tiny_study, folder / "docs" / "studies" / "NAME")
    published = [path.parent.name for path in (ROOT / "docs" / "studies").glob("*/study.json")]
    for name in {"one_to_another", *published}:
        shutil.copytree(folder / "docs" / "studies" / "NAME", folder / "docs" / "studies" / name)
    # Seeds of the tiny study are too few to speak of any claim.
    shutil.copytree(ROOT / "docs" / "studies" / "which_start", folder / "docs" / "studies" / "which_start")
    (folder / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "defaults_0.1.json", folder / "benchmarks")
    study = jaxseg.load(tiny_study)
    for name in study.cases("test"):
        case = study.case(name)
        for place in ("predictions_of_another_tool", "nnunet_output", "model_a", "labels", "PATH/Task04_Hippocampus"):
            image_sets.save(folder / place / f"{name}.nii.gz", case.label.reshape(16, 16, 1).astype(np.uint8))
    weight_files.write_safetensors(folder / "weights.safetensors", weight_files.foreign_tensors())
    weight_files.documented_rules(folder)
    for place in ("images", "PATH/IMAGES"):
        image_sets.save(folder / place / "new.nii.gz", np.random.default_rng(0).normal(size=(16, 16, 1)))
    return folder


def test_commands_are_known() -> None:
    programs = {program(command) for _, command in commands()}
    assert programs - {"python", "source", *ELSEWHERE} == set()
    assert len(RUN) > 15


STUDIES = [
    (page, command)
    for page, command in commands()
    if "launch.study" in command and "--config=" in command and "--stages=plan" not in command  # which sets what lacks
]


@pytest.mark.parametrize(("page", "command"), STUDIES, ids=[f"{page}-{i}" for i, (page, _) in enumerate(STUDIES)])
def test_the_settings_of_a_study_agree(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the images are: a command that is refused for its settings would be refused for every reader."""
    monkeypatch.chdir(ROOT)
    values = flags.FlagValues()
    words = ["study", *(word for word in shlex.split(command, comments=True) if word.startswith("--config"))]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    values(words)
    settings.parse(values.config)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), RUN, ids=[f"{page}-{i}" for i, (page, _) in enumerate(RUN)])
def test_a_command_runs(page: str, command: str, reader: Path, owner: Path) -> None:
    words = reduced(page, shlex.split(command, comments=True))
    place = owner
    if words[2] in ("launch.study", "launch.sweep"):
        place = reader / page.replace("/", "_")
        if not place.exists():
            place.mkdir()
            (place / "configs").symlink_to(ROOT / "configs")
            (place / "PATH").symlink_to(reader / "PATH")
    if "--stages=analyze,report" in words:  # of a finished study
        programs.run(*(word for word in words[2:] if not word.startswith("--stages")), cwd=place)
    programs.run(*words[2:], cwd=place)
    for word in words:
        if word.startswith("--output="):
            made = owner / word.removeprefix("--output=")
            written = ("network.safetensors", "network.jax", "import.json")
            assert (
                made.is_file()
                or any((made / name).is_file() for name in written)
                or nib.load(next(made.rglob("*.nii.gz"))).shape == (16, 16, 1)
            )
