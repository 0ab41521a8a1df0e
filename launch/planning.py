"""`--stages=plan` of `launch.study`: looks at the images of a config and writes a config file for them."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import jaxseg
from jaxseg import paths, settings
from jaxseg.settings.kinds import read_regions
from jaxseg.study.plan import cost
from jaxseg.study.plan.jobs import check_networks, make_plan, seed_plan
from jaxseg.study.plan.planned import device_bytes, memory_bytes
from jaxseg.study.plan.source_networks import given_shapes
from jaxseg.study.plan.tasks import check_target_data
from jaxseg.study.proposal.choice import Proposal, as_lines
from jaxseg.study.proposal.fingerprint import Fingerprint, take_fingerprint
from jaxseg.study.proposal.machine import Resources, read_budget
from jaxseg.study.proposal.network import ROUGH
from jaxseg.study.proposal.rules import propose
from jaxseg.types import UserError
from launch import terminal

STAGE = "plan"
BUDGET = "2h"
FILE = "planned.py"
"""Where the config is written, in the workdir, unless --output says otherwise."""


def run(config: Any, words: Sequence[str], workdir: Path, *, budget: str, output: str | None) -> None:
    """Plans a study, prints the settings with their reasons and writes the config file.

    Args:
        config: The config, which names the data, the arms and the seeds.
        words: What of the command line made it; fields that are set there are left as they are.
        workdir: Folder of the study, which is not claimed: nothing but the config file and downloads are put there.
        budget: Time for the whole study on this machine, as text.
        output: Path of the config file; None for the usual one.

    Raises:
        UserError: If the data cannot be read, the budget is no time, or the file exists.
    """
    seconds = read_budget(budget)
    path = Path(output) if output else workdir / FILE
    if path.exists():
        raise UserError(f"{path} exists and is left as it is; remove it, or give another --output")
    speed = cost.measure_speed(tuple(jax.local_devices()))
    made, target, sources = plan(config, workdir, fixed=given(words), seconds=seconds, speed=speed)
    terminal.say("\n".join(as_lines(made)))
    command = f"python -m launch.study --config={shlex.quote(str(path))} --workdir={shlex.quote(str(workdir))}"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = f"for {budget} on the machine that planned it, from the images of {_described([target, *sources.values()])}"
    fields = [(field, _value(config, field)) for field in dict.fromkeys(given(words))]
    path.write_text(as_config(made, _file(words), fields, about=about, command=command), encoding="utf-8")
    terminal.say(f"\n{path} holds these settings; look at them, then run\n  {command}")


def given(words: Sequence[str]) -> list[str]:
    """Returns the dotted fields that the command line sets."""
    names = (re.match(r"--?(?:no)?config\.([^=]+)", word) for word in words)
    return [name[1] for name in names if name]


def plan(
    config: Any, workdir: Path, *, fixed: Sequence[str] = (), seconds: float, speed: cost.Speed
) -> tuple[Proposal, Fingerprint, dict[str, Fingerprint]]:
    """Proposes the settings of a config from its images, and puts them into it.

    Args:
        config: The config; its fields become those that are proposed.
        workdir: Folder for downloads.
        fixed: Fields that stay as they are.
        seconds: Time for the whole study.
        speed: Of all devices together.

    Returns:
        The proposal and the fingerprints of the target and of the sources, by the section that describes each; of no
        source where no network is pretrained.

    Raises:
        UserError: If the data cannot be read, or the config has a mistake.
    """
    cache = paths.expand(str(config.runtime.store_dir) or workdir / "stores")
    told = terminal.make_progress()("look at the images")
    check_target_data(_text(config, "target"))
    target = take_fingerprint(_text(config, "target"), **_structures(config, "target"), cache=cache, progress=told)
    role_of = source_sections(config)
    labelled = {role for arm, role in role_of.items() if _pretrain(config, arm, "objective") == "labels"}
    seen = {role: _structures(config, role) if role in labelled else {"labelled": False} for role in role_of.values()}
    sources = {
        role: take_fingerprint(_text(config, role), **own, cache=cache, progress=told) for role, own in seen.items()
    }
    kept = {field: _value(config, field) for field in fixed}
    platform = jax.local_devices()[0].platform

    def count(steps: int) -> tuple[settings.StudySettings, set[str], int]:
        """The study with runs of so many steps, the fields that are proposed, and the steps of all of its runs."""
        alone = Resources(seconds, 1.0, speed, memory_bytes(1), platform)
        first = _without(propose(target, sources, alone, fixed={**kept, "train.steps": steps}, meter=ROUGH), fixed)
        put(config, first)
        study = settings.parse(config)
        total = count_steps(study, target, {arm: sources[role] for arm, role in role_of.items()})
        return study, {choice.field for choice in first.choices}, total

    # How many runs there are is known of a config that is complete: first as if each had all of the time. What does not
    # grow with `train.steps` are runs whose length is given.
    steps = kept.get("train.steps", _SOME_STEPS)
    study, proposed, total = count(steps)
    runs, other = max(1.0, total / steps), 0.0
    if "train.steps" not in kept:
        runs = max(1.0, (count(2 * steps)[-1] - total) / steps)
        other = max(0.0, total / runs - steps)
    resources = Resources(seconds, runs, speed, device_bytes(study), platform, other)
    made = _without(propose(target, sources, resources, fixed=kept | left_alone(study, proposed)), fixed)
    put(config, made)
    check_networks(settings.parse(config))
    return made, target, sources


_SOME_STEPS = 10_000
"""Steps at which runs are counted, and at twice as many."""
_COSTLY = ("target", "model", "train", "evaluate")
"""Sections that say what a step and a test take."""


def left_alone(study: settings.StudySettings, proposed: Collection[str]) -> dict[str, Any]:
    """Returns the fields that a plan leaves as they are and on which the time of a study depends.

    They come from the config file as well as from the command line: a network that the file names takes its time, too.

    Args:
        study: The study.
        proposed: The dotted fields that the plan writes.
    """
    return {
        field: value
        for section in _COSTLY
        for name, value in vars(getattr(study, section)).items()
        if (field := f"{section}.{name}") not in proposed
    }


def source_sections(config: Any) -> dict[str, str]:
    """Returns the section that describes the source of each arm whose source networks the study trains.

    That is `source`, or the arm's own if it names other `data`. Arms whose source is the target are left out, since it
    has the target's settings.
    """
    found = {}
    for name, arm in config.arms.items():
        trains = arm.kind == "network" and arm.init != "random"
        own = arm.get("source", {})
        given = _pretrain(config, name, "from_workdir")
        if trains and not given and own.get("data", config.source.data) != "target":
            found[name] = f"arms.{name}.source" if "data" in own else "source"
    return found


def _pretrain(config: Any, arm: str, field: str) -> Any:
    """A field of `pretrain` as an arm has it."""
    return config.arms[arm].get("pretrain", {}).get(field, config.pretrain[field])


def _text(config: Any, task: str) -> str:
    data = _value(config, task).data
    if not isinstance(data, str) or not data:
        raise UserError(f"config.{task}.data = {data!r}; allowed: a folder, or synthetic:NAME")
    return data


def _structures(config: Any, task: str) -> dict[str, Any]:
    """What a task segments, as arguments of `take_fingerprint`; what an arm does not name is that of `source`."""
    own, base = _value(config, task), config.target if task == "target" else config.source
    labels, regions = (own.get(field, base[field]) for field in ("labels", "regions"))
    return {"labels": labels, "regions": read_regions(regions, f"{task}.regions")}


def _without(made: Proposal, fixed: Sequence[str]) -> Proposal:
    return Proposal(tuple(choice for choice in made.choices if choice.field not in fixed), made.notes)


def put(config: Any, made: Proposal) -> None:
    """Sets the proposed fields of a config."""
    with config.unlocked():  # an arm's source has the fields alone that it overrides
        for choice in made.choices:
            config.update(_nested(choice.field, choice.value))


def _nested(field: str, value: Any) -> dict[str, Any]:
    for name in reversed(field.split(".")):
        value = {name: value}
    return value


def count_steps(study: settings.StudySettings, target: Fingerprint, sources: Mapping[str, Fingerprint]) -> int:
    """Returns the steps of all runs of a study, of source networks and trials too.

    Args:
        study: The study.
        target: Images of the target.
        sources: Images of the source of each arm that has its own.
    """

    def size(found: Fingerprint) -> tuple[int, int]:
        return len(found.channels), found.classes

    used = seed_plan(study)
    planned = make_plan(
        study,
        target_size=size(target),
        source_sizes={arm.source: size(sources.get(arm.name, target)) for arm in study.arms},
        memory_bytes=memory_bytes(len(used.devices)),
        devices=len(used.devices),
        strategy=used.strategy,
        platform=used.platform,
        given=given_shapes(study),
    )
    return sum(len(job.runs) * job.program.train.steps for job in planned.jobs)


# --------------------------------------------------------------------------------------------------------------- file


def as_config(
    made: Proposal, base: tuple[str, str], fields: Sequence[tuple[str, Any]], *, about: str, command: str
) -> str:
    """Returns a config file that starts from another and sets what was given and what is proposed.

    Args:
        made: The proposal.
        base: File and argument of the config that it is for.
        fields: Fields that the command line set, with their values.
        about: What the plan was made for.
        command: The command that runs it.
    """
    file, argument = base
    imported = _import(file)
    lines = textwrap.wrap(f'"""Planned by jaxseg {jaxseg.__version__} {_plain(about)}.', 118)
    lines += ["", f"    {_plain(command)}", '"""', "", *imported, "", "", "def get_config():"]
    lines.append('    """The study as planned; change what you like."""')
    lines.append(
        f"    config = base.get_config({_literal(argument)})" if argument else "    config = base.get_config()"
    )
    lines += [f"    {_assignment(field, value)}  # given on the command line" for field, value in fields]
    for choice in made.choices:
        lines += textwrap.wrap(_plain(choice.reason), 114, initial_indent="    # ", subsequent_indent="    # ")
        lines.append(f"    {_assignment(choice.field, choice.value)}")
    return "\n".join([*lines, "    return config", ""])


def _assignment(field: str, value: Any) -> str:
    """Sets a field; one of an arm by `update`: its name may hold dashes, and it has only what it overrides."""
    section, _, rest = field.partition(".")
    if section != "arms":
        return f"config.{field} = {_literal(value)}"
    arm, _, own = rest.partition(".")
    return f"config.arms[{_literal(arm)}].update({_nested(own, value)!r})"


def _literal(value: Any) -> str:
    """A value as Python writes it, with the quotation marks of the other configs."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _value(config: Any, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


def _described(found: Sequence[Fingerprint]) -> str:
    return " and ".join(
        f"{one.data} ({one.cases} cases in {one.groups} groups, {one.read} of them looked at)" for one in found
    )


def _plain(text: str) -> str:
    """A text that ends neither a docstring nor a comment."""
    return terminal.plain(text).replace("\\", "/").replace('"""', "'''").replace("\n", " ")


def _file(words: Sequence[str]) -> tuple[str, str]:
    """The file of a config and its argument."""
    for word in words:
        flag, _, value = word.partition("=")
        if flag.lstrip("-") == "config":
            file, _, argument = value.partition(":")
            return file, argument
    raise UserError("--config is missing; for example --config=configs/auto.py:SOURCE,TARGET")


def _import(file: str) -> list[str]:
    """The lines that import a config file by its module, or from its path where it is in no package."""
    parts = Path(file).with_suffix("").parts
    if len(parts) > 1 and all(part.isidentifier() for part in parts):
        return [f"from {'.'.join(parts[:-1])} import {parts[-1]} as base"]
    path = str(Path(file).absolute())
    return ["import runpy", "import types", "", f"base = types.SimpleNamespace(**runpy.run_path({path!r}))"]
