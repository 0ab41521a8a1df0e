"""The recipes for containers, Kubernetes and clouds: valid by the published references, and true of this code.

No cluster runs here. What a recipe says to its engine is checked against a schema of the engine's reference, and what
it says to launch.study against launch.study itself.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from absl import flags

from launch import cli
from launch import study as study_command
from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
DOCKERFILE = LAUNCH / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / f"{name}.yaml").read_text(encoding="utf-8"))


def check_options(words: list[str]) -> None:
    """Each word is an option of launch.study, and their config is one."""
    own = [word for word in words if not re.match(r"--config[=.]", word)]
    for word in own:
        name, _, value = word.removeprefix("--").partition("=")
        assert word.startswith("--")
        assert name in flags.FLAGS, f"launch.study has no option --{name}"
        flags.FLAGS[name].parser.parse(value)
    assert study_command.main.__module__ == "launch.study"
    assert cli.parse_config(cli.config_words(words)).name


# ------------------------------------------------------------------------------------------------------------ schemas


def misspelt(recipe: dict[str, Any]) -> None:
    recipe["nmae"] = recipe["name" if "name" in recipe else "kind"]


def wrong_type(recipe: dict[str, Any]) -> None:
    if "spec" in recipe:
        recipe["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] = "two"
    else:
        recipe["num_nodes"] = "one"


@pytest.mark.parametrize("name", ["jobset", "sky"])
def test_a_recipe_follows_its_reference(name: str) -> None:
    schema = json.loads((ROOT / "tests" / "launch" / "schemas" / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(read_recipe(name), schema)
    for mistake in (misspelt, wrong_type):
        recipe = read_recipe(name)
        mistake(recipe)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(recipe, schema)


# --------------------------------------------------------------------------------------------------------- Kubernetes


@pytest.fixture
def jobset() -> dict[str, Any]:
    return read_recipe("jobset")["spec"]


@pytest.fixture
def job(jobset: dict[str, Any]) -> dict[str, Any]:
    (hosts,) = jobset["replicatedJobs"]
    return hosts["template"]["spec"]


@pytest.fixture
def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = job["template"]["spec"]["containers"]
    return found


def expanded(container: dict[str, Any], index: int) -> list[str]:
    """The arguments as Kubernetes hands them to the pod of an index."""
    # The controller of indexed jobs sets the second; a variable that is not set would stay as it is written.
    values = {variable["name"]: "jaxseg-hosts-0-0.jaxseg" for variable in container["env"]}
    values["JOB_COMPLETION_INDEX"] = str(index)
    return [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in container["args"]]


def test_the_pods_of_a_jobset_run_a_study_of_as_many_processes(
    jobset: dict[str, Any], job: dict[str, Any], container: dict[str, Any]
) -> None:
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    for index in range(job["completions"]):
        words = expanded(container, index)
        check_options(words)
        given = dict(word.removeprefix("--").split("=", 1) for word in words)
        assert int(given["num_processes"]) == job["completions"]
        assert int(given["process_id"]) == index
        host, _, port = given["coordinator"].rpartition(":")
        assert host == "jaxseg-hosts-0-0.jaxseg"
        assert [int(port)] == [one["containerPort"] for one in container["ports"]]
    assert jobset["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    assert jobset["coordinator"] == {"replicatedJob": jobset["replicatedJobs"][0]["name"], "jobIndex": 0, "podIndex": 0}
    (variable,) = container["env"]
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.annotations['jobset.sigs.k8s.io/coordinator']"


def test_a_stopped_jobset_saves_and_goes_on_and_a_mistake_ends_it(
    jobset: dict[str, Any], job: dict[str, Any], container: dict[str, Any]
) -> None:
    slurm = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8")
    grace = re.search(r"--signal=TERM@(\d+)", slurm)
    assert grace is not None
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == int(grace[1])
    # One pod that is lost fails the job at once, and then the whole set starts again.
    assert job["backoffLimit"] == 0
    assert jobset["failurePolicy"]["maxRestarts"] > 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    (ended,) = jobset["failurePolicy"]["rules"]
    assert (ended["action"], ended["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_a_jobset_uses_the_image_as_the_dockerfile_makes_it(job: dict[str, Any], container: dict[str, Any]) -> None:
    pod = job["template"]["spec"]
    made = instructions()
    user, group = last(made, "USER").split(":")
    about = pod["securityContext"]
    assert about["runAsNonRoot"]
    assert (about["runAsUser"], about["runAsGroup"], about["fsGroup"]) == (int(user), int(group), int(group))
    assert "command" not in container
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    assert {one["name"] for one in mounts.values()} == {one["name"] for one in pod["volumes"]}
    folders = re.findall(r"install --directory .* (/runs) (/data)", " ".join(value for _, value in made))
    assert {*folders[0], "/dev/shm"} == set(mounts)
    given = dict(word.removeprefix("--").split("=", 1) for word in container["args"])
    assert given["workdir"].startswith("/runs/")
    assert given["config.target.data"].startswith("/data/")
    assert (ROOT / given["config"].partition(":")[0]).is_file()  # which the image has below its working directory
    assert not container["image"].endswith(":latest")


# ------------------------------------------------------------------------------------------------------------ SkyPilot


def run_script(tmp_path: Path, **environment: str) -> list[str]:
    """The arguments with which the `run` script starts Python."""
    recipe = read_recipe("sky")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", recipe["run"]],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", **recipe["envs"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("nodes", [1, 3])
def test_skypilot_runs_a_study_of_as_many_processes(tmp_path: Path, nodes: int) -> None:
    ips = "\n".join(f"10.0.0.{index + 1}" for index in range(nodes))
    for rank in range(nodes):
        words = run_script(tmp_path, SKYPILOT_NUM_NODES=str(nodes), SKYPILOT_NODE_IPS=ips, SKYPILOT_NODE_RANK=str(rank))
        assert words[:3] == ["-u", "-m", "launch.study"]
        check_options(words[3:])
        own = [word for word in words if re.match("--(coordinator|num_processes|process_id)", word)]
        expected = ["--coordinator=10.0.0.1:55527", f"--num_processes={nodes}", f"--process_id={rank}"]
        assert own == (expected if nodes > 1 else [])


def test_skypilot_mounts_what_the_study_reads_and_writes(tmp_path: Path) -> None:
    recipe = read_recipe("sky")
    words = run_script(tmp_path, SKYPILOT_NUM_NODES="1", STUDY="mine")
    mounts = recipe["file_mounts"]
    assert "--workdir=/runs/mine" in words
    assert mounts["/runs"]["mode"] == "MOUNT_CACHED"  # plain MOUNT renames no folders
    data = next(word for word in words if word.startswith("--config.target.data=")).partition("=")[2]
    assert data in mounts
    used = set(re.findall(r"\$\{(\w+)\}", json.dumps(mounts)))
    assert used <= set(recipe["envs"])
    extras = re.findall(r"\.\[(\w+)\]", recipe["setup"])
    assert extras
    assert set(extras) <= set(PROJECT["optional-dependencies"])


# ---------------------------------------------------------------------------------------------------------- Dockerfile


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, one a line, without comments."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in joined.splitlines() if line.strip()]


def last(made: list[tuple[str, str]], name: str) -> str:
    return [value for found, value in made if found == name][-1]


def copied() -> dict[str, str]:
    """What is copied from the clone: source and target."""
    found = {}
    for name, value in instructions():
        if name == "COPY" and not value.startswith("--from="):
            *sources, target = value.split()
            found |= dict.fromkeys(sources, target)
    return found


def test_the_image_is_pinned_and_runs_a_study_as_a_user() -> None:
    made = instructions()
    defaults = dict(value.split("=", 1) for name, value in made if name == "ARG")
    bases = [value.split()[0].replace("${PYTHON}", defaults["PYTHON"]) for name, value in made if name == "FROM"]
    assert len(bases) == 2
    lowest = PROJECT["requires-python"].removeprefix(">=")
    for base in bases:
        found = re.fullmatch(r"python:(\d+)\.(\d+)-slim", base)
        assert found is not None, base
        assert (int(found[1]), int(found[2])) >= tuple(map(int, lowest.split(".")))
    users = [value for name, value in made if name == "USER"]
    assert users == ["1000:1000"]
    assert made.index(("USER", users[0])) > max(index for index, (name, _) in enumerate(made) if name == "COPY")
    assert json.loads(last(made, "ENTRYPOINT")) == ["python", "-m", "launch.study"]
    assert last(made, "STOPSIGNAL") == "SIGTERM"


def test_the_builds_that_the_dockerfile_names_take_extras_of_the_project() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    named = re.findall(r"EXTRAS=([\w,]+)", text) + re.findall(r"such as ([\w,]+)\.", text)
    assert "cuda" in named
    assert {extra for names in named for extra in names.split(",")} <= set(PROJECT["optional-dependencies"])
    install = next(value for name, value in instructions() if name == "RUN" and "pip install" in value)
    written = re.search(r'"(\..*)"', install)
    assert written is not None
    for extras, expected in (("", "."), ("cuda,formats", ".[cuda,formats]")):
        done = subprocess.run(
            ["sh", "-c", f'printf %s "{written[1]}"'], env={"EXTRAS": extras}, capture_output=True, check=True
        )
        assert done.stdout.decode() == expected


def test_the_builder_gets_what_the_dockerfile_copies() -> None:
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied())
    assert fnmatch.fnmatch("launch/__pycache__", rules[-1])


def test_what_is_copied_is_all_that_a_study_needs_beside_the_package(tmp_path: Path) -> None:
    for source, target in copied().items():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "launch.study", "--config=configs/quickstart.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--workdir is missing" in done.stderr


def test_the_dockerfile_has_no_findings() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
def test_the_image_is_built_and_prints_the_help_of_a_study() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("docker does not run here")
    build = ["docker", "build", "-q", "-f", DOCKERFILE, ROOT]
    image = subprocess.run(build, capture_output=True, text=True, check=True).stdout.strip()
    done = subprocess.run(["docker", "run", "--rm", image, "--help"], capture_output=True, text=True, check=True)
    assert "Runs a whole study" in done.stdout
