"""ConfigDict to typed, checked settings, and the resolved config that a workdir keeps.

Every field is checked here against its type, and by `rules` against its range and the others, before any work starts.
"""

from __future__ import annotations

import hashlib
import json
import re
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxseg.reserved import SOURCE
from jaxseg.settings.kinds import bad_value as _bad
from jaxseg.settings.kinds import convert as _convert
from jaxseg.settings.kinds import fill as _fill
from jaxseg.settings.kinds import nearest, parse_streams
from jaxseg.settings.rules import MAX_SEED, check_study
from jaxseg.settings.schema import (
    AnalysisSettings,
    ArmSettings,
    EvaluateSettings,
    LossSettings,
    ModelSettings,
    OptimSettings,
    PretrainSettings,
    ReportSettings,
    RuntimeSettings,
    StudySettings,
    TaskSettings,
    TrainSettings,
)
from jaxseg.types import UserError

RESERVED_ARMS = re.compile(rf"{SOURCE}(_\d+)?")

ARM_OVERRIDES = ("model", "optim", "loss", "train", "source", "pretrain")


# Sections that change no result: a workdir may be continued with other values of these.
FREE_SECTIONS = ("runtime", "report")


# ---------------------------------------------------------------------------------------------------- from sections


def _model(section: Mapping[str, Any], train: Mapping[str, Any], path: str) -> ModelSettings:
    given = {
        "precision": _convert(train["precision"], str, "train.precision"),
        "remat": _convert(train["remat"], bool, "train.remat"),
    }
    return _fill(ModelSettings, section, path, **given)


def _train(section: Mapping[str, Any], path: str) -> TrainSettings:
    return _fill(
        TrainSettings, {key: value for key, value in section.items() if key not in ("precision", "remat")}, path
    )


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A section with an arm's overrides laid over it."""
    if not isinstance(over, Mapping):
        raise _bad(path, over, f"a section of overrides, such as {{{next(iter(base))!r}: ...}}")
    merged = dict(base)
    for key, value in over.items():
        if key not in base:
            raise UserError(f"unknown field config.{path}.{key}{nearest(key, base)} Fields: {', '.join(base)}")
        merged[key] = _merged(base[key], value, f"{path}.{key}") if isinstance(value, Mapping) else value
    return merged


def _source(config: Mapping[str, Any], over: Mapping[str, Any], path: str) -> TaskSettings:
    """The source task; with `data = "target"` the target's own settings, for cases that its runs do not see."""
    base = config["source"]
    if "target" in (over.get("data"), base["data"]) and over.get("data", "target") == "target":
        # One fold, and nothing held out beyond what the target holds out already.
        base = dict(config["target"]) | {"data": "target", "train_cases": (0,), "folds": 1, "test_cases": 1}
    return _fill(TaskSettings, _merged(base, over, path), path)


def _arm(name: str, arm: Mapping[str, Any], config: Mapping[str, Any], seeds: tuple[int, ...]) -> ArmSettings:
    own = ("kind", "init", "freeze", "seed_offset", "train_cases", "vary", "cross", "cross_ids")
    if not isinstance(arm, Mapping):
        raise _bad(f"arms.{name}", arm, "a section of fields, as default.arm(INIT, FREEZE) makes it")
    for key in arm:
        if key not in own + ARM_OVERRIDES:
            known = own + ARM_OVERRIDES
            raise UserError(f"unknown field config.arms.{name}.{key}{nearest(key, known)} Fields: {', '.join(known)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"arm name {name!r}: allowed are letters, digits, '_', '-' and '.', as it names folders")
    if RESERVED_ARMS.fullmatch(name):
        raise UserError(
            f"arm name {name!r}: 'source', 'source_2', 'source_3', ... are reserved for the source networks, which "
            "have these names in tables and in study.json; give the arm another name"
        )
    path = f"arms.{name}"
    for key in own:
        if key not in arm:
            raise UserError(f"config.{path}.{key} is missing; make arms with default.arm(INIT, FREEZE)")
    changed = [key for key in ARM_OVERRIDES if key != "source"]
    sections = {key: _merged(config[key], arm.get(key, {}), f"{path}.{key}") for key in changed}
    cross = parse_streams(arm["cross"], f"{path}.cross")
    return ArmSettings(
        name=name,
        kind=_convert(arm["kind"], str, f"{path}.kind"),
        init=_convert(arm["init"], str, f"{path}.init"),
        freeze=_convert(arm["freeze"], str, f"{path}.freeze"),
        seed_offset=_convert(arm["seed_offset"], int, f"{path}.seed_offset"),
        train_cases=_convert(arm["train_cases"], tuple[int, ...], f"{path}.train_cases")
        or _convert(config["target"]["train_cases"], tuple[int, ...], "target.train_cases"),
        vary=parse_streams(config["vary"] if arm["vary"] == "study" else arm["vary"], f"{path}.vary"),
        cross=cross,
        cross_ids=_convert(arm["cross_ids"], tuple[int, ...], f"{path}.cross_ids") or (seeds if cross else ()),
        model=_model(sections["model"], sections["train"], f"{path}.model"),
        optim=_fill(OptimSettings, sections["optim"], f"{path}.optim"),
        loss=_fill(LossSettings, sections["loss"], f"{path}.loss"),
        train=_train(sections["train"], f"{path}.train"),
        source=_source(config, arm.get("source", {}), f"{path}.source"),
        pretrain=_fill(PretrainSettings, sections["pretrain"], f"{path}.pretrain"),
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
    first = ("name", "num_seeds", "seed_ids", "base_seed", "vary", "source", "target")
    known = tuple(dict.fromkeys((*first, *ARM_OVERRIDES, "arms", "evaluate", "analysis", "runtime", "report")))
    for key in tree:
        if key not in known:
            raise UserError(f"unknown field config.{key}{nearest(key, known)} Fields: {', '.join(known)}")
    for key in known:
        if key not in tree:
            raise UserError(f"config.{key} is missing; start from configs/default.py, which declares every field")
    seeds = _convert(tree["seed_ids"], tuple[int, ...], "seed_ids")
    if not seeds:
        count = _convert(tree["num_seeds"], int, "num_seeds")
        if count < 1:
            raise _bad("num_seeds", count, "a number from 1; comparisons between arms need at least 2, verdicts 8")
        seeds = tuple(range(count))
    if len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) > MAX_SEED:
        raise _bad("seed_ids", seeds, f"different numbers from 0 to {MAX_SEED}")
    vary = parse_streams(tree["vary"], "vary")
    if not isinstance(tree["arms"], Mapping):
        raise _bad("arms", tree["arms"], "a section of arms, as default.pick_arms makes it")
    if not tree["arms"]:
        raise UserError("config.arms is empty: name at least one arm, e.g. default.pick_arms('scratch')")
    study = StudySettings(
        name=_convert(tree["name"], str, "name"),
        seeds=seeds,
        base_seed=_convert(tree["base_seed"], int, "base_seed"),
        vary=vary,
        source=_source(tree, {}, "source"),
        target=_fill(TaskSettings, tree["target"], "target"),
        model=_model(tree["model"], tree["train"], "model"),
        optim=_fill(OptimSettings, tree["optim"], "optim"),
        loss=_fill(LossSettings, tree["loss"], "loss"),
        train=_train(tree["train"], "train"),
        arms=tuple(_arm(name, arm, tree, seeds) for name, arm in tree["arms"].items()),
        evaluate=_fill(EvaluateSettings, tree["evaluate"], "evaluate"),
        analysis=_fill(AnalysisSettings, tree["analysis"], "analysis"),
        runtime=_fill(RuntimeSettings, tree["runtime"], "runtime"),
        report=_fill(ReportSettings, tree["report"], "report"),
    )
    check_study(study)
    return study


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
    return {key: value for key, value in fields.items() if key.split(".")[0] not in FREE_SECTIONS}


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
            lines.append(f"config.{key}: {show[0]} in the workdir, {show[1]} asked for")
    return lines
