"""ConfigDict to typed, checked settings, and the resolved config that a workdir keeps.

Every field is checked against its type here, and by `rules` against its range and the others, before any work starts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxseg.reserved import is_source
from jaxseg.settings.kinds import bad_value, convert, hints, nearest, read_varied
from jaxseg.settings.rules import check_network, check_study
from jaxseg.settings.schema import ArmSettings, ModelSettings, StudySettings
from jaxseg.settings.task_schema import TaskSettings, images_alone
from jaxseg.types import UserError

OVERRIDES = tuple(name for name, kind in hints(ArmSettings).items() if dataclasses.is_dataclass(kind))
"""Sections of which an arm may override fields."""
OWN = tuple(name for name in hints(ArmSettings) if name not in ("name", *OVERRIDES))
"""Fields of an arm that are no section."""
CROSS_IDS = ".cross_ids"
"""The end of the dotted name of the ids that an arm crosses."""
FREE_SECTIONS = ("runtime", "report")
"""Sections that change no result: a workdir may be continued with other values of these."""
GROWING = ("num_seeds", "looks", "target.test_data", "evaluate.ensemble")
"""Fields that may change in a workdir: a study may get more seeds, and its networks may be tested on further images and
together. What that means for it, its record says."""


# ---------------------------------------------------------------------------------------------------- from sections


def _check_known(given: Iterable[str], known: Iterable[str], path: str) -> None:
    names = tuple(known)
    for name in given:
        if name not in names:
            raise UserError(f"unknown field config.{path}{name}{nearest(name, names)} Fields: {', '.join(names)}")


def _fill(cls: type, section: Any, path: str, **given: Any) -> Any:
    """Builds a settings class from a config section with exactly its fields, apart from those given."""
    if not isinstance(section, Mapping):
        raise bad_value(path.removesuffix("."), section, "a section of fields, as in configs/default.py")
    kinds = {name: kind for name, kind in hints(cls).items() if name not in given}
    _check_known(section, hints(cls), path)
    values = dict(given)
    for name, kind in kinds.items():
        where = f"{path}{name}"
        if name not in section:
            raise UserError(f"config.{where} is missing; start from configs/default.py, which declares every field")
        if dataclasses.is_dataclass(kind):
            values[name] = _fill(typing.cast(type, kind), section[name], f"{where}.")
        else:
            values[name] = convert(section[name], kind, where)
    return cls(**values)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A section with an arm's overrides laid over it."""
    if not isinstance(over, Mapping):
        raise bad_value(path, over, f"a section of overrides, such as {{{next(iter(base))!r}: ...}}")
    _check_known(over, base, f"{path}.")
    return {**base} | {
        key: _merged(base[key], value, f"{path}.{key}") if isinstance(value, Mapping) else value
        for key, value in over.items()
    }


def _source(config: Mapping[str, Any], over: Mapping[str, Any], path: str) -> TaskSettings:
    """The source task; with `data = "target"` the target's own settings, for cases that its runs do not see."""
    base = config["source"]
    if "target" in (over.get("data"), base["data"]) and over.get("data", "target") == "target":
        # One fold, and nothing held out beyond what the target holds out already.
        base = dict(config["target"]) | {"data": "target", "train_cases": (0,), "folds": 1, "test_cases": 1}
        base["test_data"] = TaskSettings.test_data
    return _fill(TaskSettings, _merged(base, over, path), f"{path}.")


def _check_settings_of_target(tree: Mapping[str, Any], study: StudySettings) -> None:
    """Refuses settings of a source that is the target, and so has the target's: nothing would come of them.

    Raises:
        UserError: All of them, unless an arm with data of its own takes them.
    """
    data = {arm.get("source", {}).get("data", "target") for arm in tree["arms"].values()}
    if study.source.data != "target" or data != {"target"}:
        return
    asked = _fill(TaskSettings, tree["source"], "source.")
    unused = dict(_other_than(asked, study.target))
    if unused:
        given = ", ".join(f"config.source.{name} = {value!r}" for name, value in unused.items())
        raise UserError(
            f"{given}; allowed: the default or the value of the target, whose settings the source has with source.data "
            f"= 'target'. Set {', '.join(f'target.{name}' for name in unused)}, or override it for an arm alone, such "
            f"as arms.transfer.source = {{'augment': {{'noise': 0.5}}}}"
        )


def _other_than(asked: Any, target: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a task, by dotted name, that have neither their default nor the value that the target has."""
    for field in dataclasses.fields(asked):
        value, of_target = getattr(asked, field.name), getattr(target, field.name)
        if dataclasses.is_dataclass(value):
            yield from _other_than(value, of_target, f"{path}{field.name}.")
        elif field.name != "data" and value not in (field.default, of_target):
            yield f"{path}{field.name}", value


def _arm(name: str, arm: Mapping[str, Any], config: Mapping[str, Any], study: StudySettings) -> ArmSettings:
    path = f"arms.{name}"
    if not isinstance(arm, Mapping):
        raise bad_value(path, arm, "a section of fields, as default.arm(INIT, FREEZE) makes it")
    _check_known(arm, OWN + OVERRIDES, f"{path}.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"arm name {name!r}: allowed are letters, digits, '_', '-' and '.', as it names folders")
    if is_source(name):
        raise UserError(
            f"arm name {name!r}: 'source', 'source_2', 'source_3', ... are reserved for the source networks, which "
            "have these names in tables and in study.json; give the arm another name"
        )
    for key in OWN:
        if key not in arm:
            raise UserError(f"config.{path}.{key} is missing; make arms with default.arm(INIT, FREEZE)")
    # That folds rotate over seeds is the study's affair: an arm's seeds are tested on those of the seeds beside them.
    streams = ",".join(stream for stream in read_varied(config["vary"], "vary") if stream != "fold")
    vary = streams if arm["vary"] == "study" else arm["vary"]
    sections = {key: _merged(config[key], arm.get(key, {}), f"{path}.{key}") for key in OVERRIDES if key != "source"}
    source = _source(config, arm.get("source", {}), f"{path}.source")
    own = {key: arm[key] for key in OWN} | {"vary": vary} | sections
    made: ArmSettings = _fill(ArmSettings, own, f"{path}.", name=name, source=source)
    return dataclasses.replace(
        made,
        train_cases=made.train_cases or study.target.train_cases,
        cross_ids=made.cross_ids or (study.seeds if made.cross else ()),
    )


def parse(config: ConfigDict) -> StudySettings:
    """Typed settings of a study.

    Args:
        config: As made by a file in configs/, with overrides applied.

    Raises:
        UserError: Unknown or missing field, a value of another type or outside its range, or values that contradict
            each other.
    """
    tree = to_dict(config)
    _check_known(tree, hints(StudySettings), "")
    for key in hints(StudySettings):
        if key not in tree:
            raise UserError(f"config.{key} is missing; start from configs/default.py, which declares every field")
    if not isinstance(tree["arms"], Mapping):
        raise bad_value("arms", tree["arms"], "a section of arms, as default.pick_arms makes it")
    if not tree["arms"]:
        raise UserError("config.arms is empty: name at least one arm, e.g. default.pick_arms('scratch')")
    sections = {key: tree[key] for key in tree if key != "arms"}
    study: StudySettings = _fill(StudySettings, sections, "", source=_source(tree, {}, "source"), arms=())
    study = dataclasses.replace(study, arms=tuple(_arm(name, arm, tree, study) for name, arm in tree["arms"].items()))
    _check_settings_of_target(tree, study)
    check_study(study)
    return dataclasses.replace(study, arms=tuple(map(_with_images_alone, study.arms)))


def _with_images_alone(arm: ArmSettings) -> ArmSettings:
    """The arm with its source as its networks see it, which without labels as objective is images alone."""
    if arm.pretrain.objective == "labels":
        return arm
    return dataclasses.replace(arm, source=images_alone(arm.source))


def parse_model(fields: Mapping[str, Any]) -> ModelSettings:
    """Typed settings of a network that is described outside a config, such as an imported one.

    Args:
        fields: Fields of `config.model`; those left out have their defaults.

    Raises:
        UserError: Unknown field, a value of another type or outside its range, or values that contradict each other.
    """
    kinds = hints(ModelSettings)
    _check_known(fields, kinds, "model.")
    made = ModelSettings(**{name: convert(value, kinds[name], f"model.{name}") for name, value in fields.items()})
    check_network(made)
    return made


# ------------------------------------------------------------------------------------------------- the saved config


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A plain nested dict with references resolved, in the order of declaration."""
    return {key: to_dict(value) if isinstance(value, ConfigDict) else value for key, value in config.items()}


def to_json(config: ConfigDict) -> str:
    """The resolved config as text; `from_json` reads it."""
    return json.dumps(to_dict(config), indent=1) + "\n"


def from_json(text: str) -> ConfigDict:
    """A saved config."""
    return from_tree(json.loads(text))


def from_tree(tree: Mapping[str, Any]) -> ConfigDict:
    """A config from plain nested dicts; JSON's lists become the tuples they were."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            # Unsorted: the order of arms is the order of tables and figures.
            return ConfigDict({key: restore(item) for key, item in value.items()}, sort_keys=False)
        return tuple(restore(item) for item in value) if isinstance(value, list) else value

    return restore(tree)


def _decisive_fields(config: ConfigDict) -> dict[str, Any]:
    """Fields by dotted name, apart from the sections that change no result.

    They go through JSON, so that a tuple and the list it was saved as are the same.
    """

    def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for key, value in tree.items():
            if isinstance(value, Mapping):
                leaves |= flat(value, f"{prefix}{key}.")
            else:
                leaves[f"{prefix}{key}"] = value
        return leaves

    fields = flat(json.loads(to_json(config)))

    def crosses(ids: str) -> bool:
        return bool(str(fields.get(f"{ids.removesuffix(CROSS_IDS)}.cross", "")).strip(" ,"))

    # Crossed ids that are left out are those of the seeds, but a study that gets more seeds does not get more of them.
    seeds = fields.get("seed_ids") or list(range(fields.get("num_seeds", 0)))
    fields |= {key: seeds for key, ids in fields.items() if key.endswith(CROSS_IDS) and not ids and crosses(key)}
    return {
        key: value for key, value in fields.items() if key.split(".")[0] not in FREE_SECTIONS and key not in GROWING
    }


def digest(config: ConfigDict) -> str:
    """What two configs share exactly if they have no `differences`."""
    return hashlib.sha256(json.dumps(_decisive_fields(config), sort_keys=True).encode()).hexdigest()


def differences(saved: ConfigDict, asked: ConfigDict) -> list[str]:
    """Fields in which two configs differ, apart from the sections that change no result, one line each."""
    old, new = _decisive_fields(saved), _decisive_fields(asked)
    missing = types.SimpleNamespace()
    lines = []
    for key in dict.fromkeys((*old, *new)):
        before, after = old.get(key, missing), new.get(key, missing)
        if before != after:
            show = [repr(value) if value is not missing else "(absent)" for value in (before, after)]
            mend = ""
            if key.endswith(CROSS_IDS) and isinstance(before, list) and before:
                mend = f"; () takes the seeds that the study has: to add seeds, set config.{key} = {tuple(before)}"
            lines.append(f"config.{key}: {show[0]} in the workdir, {show[1]} asked for{mend}")
    return lines
