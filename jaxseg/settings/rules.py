"""What values a study's settings may have: every field by itself, then against the others.

What depends on data or on a network's shape (labels that exist, patches that divide) is checked where it is known, in
`study.plan.jobs`.
"""

from __future__ import annotations

import math
import typing
from typing import Any

from jaxseg.settings.kinds import bad_value as _bad
from jaxseg.settings.kinds import is_pattern
from jaxseg.settings.schema import SLICE_AXES, ArmSettings, StudySettings, TaskSettings
from jaxseg.streams import STREAMS

# What fields that name a choice take. The modules that offer the choices are not imported here, so that a mistake is
# found before any of them does work; a test holds these names against theirs.
MODELS = ("unet", "multiscale_fcn", "vnet")
NORMS = ("none", "instance", "group", "batch")
ENCODERS = ("learned", "pooled")
PRECISIONS = ("float32", "tf32", "bfloat16")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "polynomial", "plateau")
LOSSES = ("dice_ce", "dice", "ce", "focal", "dice_focal")
NORMALIZATIONS = ("zscore", "zscore_nonzero", "percentile", "none", "dataset", "auto")
WINDOW_WEIGHTS = ("gaussian", "flat")
IMAGE_INTERPOLATIONS = ("cubic", "linear")
LABEL_INTERPOLATIONS = ("linear", "nearest")
RESIDENCES = ("auto", "device", "host")
INITS = ("random", "pretrained", "mean_var")
FREEZES = ("none", "encoder", "decoder", "all_but_head")
KINDS = ("network", "prior")
MAX_CROSSED = 999
"""Of crossed ids: three of them make one seed number."""
MAX_SEED = 2**32 - 1
"""Random streams take 32-bit ids."""


def _one_of(names: typing.Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _check_task(task: TaskSettings, ndim: int, path: str) -> None:
    def need(ok: bool, field: str, allowed: str) -> None:
        if not ok:
            raise _bad(f"{path}.{field}", getattr(task, field), allowed)

    need(bool(task.data), "data", "a folder, or synthetic:NAME")
    need(task.unit in ("mm", "voxel"), "unit", "'mm' or 'voxel'")
    need(bool(task.train_cases) and min(task.train_cases) >= 0, "train_cases", "sizes from 1, or 0 for all")
    need(len(set(task.train_cases)) == len(task.train_cases), "train_cases", "different sizes")
    need(task.val_cases >= 1, "val_cases", "a number from 1")
    need(task.test_cases >= 0, "test_cases", "a number from 1, or 0 for a share of the cases")
    need(task.folds >= 1, "folds", "a number from 1")
    need(len(task.patch) == ndim and min(task.patch) >= 1, "patch", f"{ndim} sizes, as model.ndim = {ndim}")
    slices = ("", *SLICE_AXES) if ndim == 2 else ("",)
    need(task.as_slices in slices, "as_slices", f"{_one_of(slices)} with model.ndim = {ndim}")
    sizes, axes = task.spacing_mm, len(task.window)
    reason = "as the volumes that are cut into slices" if task.as_slices else f"as model.ndim = {ndim}"
    need(isinstance(sizes, str) or len(sizes) == axes, "spacing_mm", f"{axes} numbers, {reason}")
    need(0 <= task.foreground <= 1, "foreground", "a share from 0 to 1")
    need(task.normalization in NORMALIZATIONS, "normalization", _one_of(NORMALIZATIONS))
    need(task.image_interpolation in IMAGE_INTERPOLATIONS, "image_interpolation", _one_of(IMAGE_INTERPOLATIONS))
    need(task.label_interpolation in LABEL_INTERPOLATIONS, "label_interpolation", _one_of(LABEL_INTERPOLATIONS))
    limits = task.clip
    need(not limits or (len(limits) == 2 and limits[0] < limits[1]), "clip", "() or a lower and a higher intensity")
    need(0 <= task.noise < math.inf, "noise", "0 or more")
    need(task.bad_cases in ("error", "skip"), "bad_cases", "'error' or 'skip'")
    _check_augment(task, ndim, f"{path}.augment")


def _check_augment(task: TaskSettings, ndim: int, path: str) -> None:
    augment = task.augment

    def need(ok: bool, field: str, allowed: str) -> None:
        if not ok:
            raise _bad(f"{path}.{field}", getattr(augment, field), allowed)

    for field in ("flip", "rotate90"):
        axes = getattr(augment, field)
        distinct = len(set(axes)) == len(axes)
        need(distinct and all(0 <= axis < ndim for axis in axes), field, f"different axes from 0 to {ndim - 1}")
    turned = augment.rotate90
    equal = len(turned) != 1 and len({task.patch[axis] for axis in turned}) <= 1
    need(equal, "rotate90", f"two or more axes of equal patch size; the patch is {task.patch}")
    for field in ("affine", "contrast", "blur", "low_resolution", "gamma", "brightness", "noise"):
        need(0 <= getattr(augment, field) <= 1, field, "a probability from 0 to 1")
    need(0 <= augment.rotation_deg <= 180, "rotation_deg", "degrees from 0 to 180")
    need(0 <= augment.scale < math.inf, "scale", "0 or more")


def _check_training(settings: StudySettings | ArmSettings, note: str) -> None:
    """What a study and each of its arms have: model, optim, loss, train and source."""

    def need(ok: bool, field: str, value: Any, allowed: str) -> None:
        if not ok:
            raise _bad(field, value, f"{allowed}{note}")

    model, optim, loss, train = settings.model, settings.optim, settings.loss, settings.train
    need(model.name in MODELS, "model.name", model.name, _one_of(MODELS))
    need(model.ndim in (2, 3), "model.ndim", model.ndim, "2 or 3")
    need(bool(model.widths) and min(model.widths) >= 1, "model.widths", model.widths, "positive widths")
    need(model.norm in NORMS, "model.norm", model.norm, _one_of(NORMS))
    for field, count, of in (("strides", len(model.widths) - 1, "below the first"), ("kernels", len(model.widths), "")):
        levels = getattr(model, field)
        sound = all(len(axes) == model.ndim and min(axes) >= 1 for axes in levels)
        allowed = f"() or {count} tuples, one a level {of}".rstrip() + f", each of {model.ndim} numbers from 1"
        need(not levels or (len(levels) == count and sound), f"model.{field}", levels, allowed)
    groups = model.groups
    if model.norm == "group":
        divide = groups >= 1 and all(width % groups == 0 for width in model.widths)
        need(divide, "model.groups", groups, f"a number that divides every width in {model.widths}")
    else:
        need(groups == 0, "model.groups", groups, f"0 with model.norm = {model.norm!r}; it is of the group norm")
    need(0 <= model.dropout < 1, "model.dropout", model.dropout, "a share from 0 to below 1")
    need(model.encoder in ENCODERS, "model.encoder", model.encoder, _one_of(ENCODERS))
    need(model.precision in PRECISIONS, "train.precision", model.precision, _one_of(PRECISIONS))
    need(optim.name in OPTIMIZERS, "optim.name", optim.name, _one_of(OPTIMIZERS))
    need(0 < optim.lr < math.inf, "optim.lr", optim.lr, "a positive rate")
    need(0 <= optim.weight_decay < math.inf, "optim.weight_decay", optim.weight_decay, "0 or more")
    decays = optim.name != "adam" or optim.weight_decay == 0
    need(decays, "optim.weight_decay", optim.weight_decay, "0 with 'adam', which has no decay; 'adamw' and 'sgd' have")
    need(0 <= optim.momentum < 1, "optim.momentum", optim.momentum, "a share from 0 to below 1")
    need(optim.schedule in SCHEDULES, "optim.schedule", optim.schedule, _one_of(SCHEDULES))
    need(optim.warmup_steps >= 0, "optim.warmup_steps", optim.warmup_steps, "0 or more")
    need(0 <= optim.clip_norm < math.inf, "optim.clip_norm", optim.clip_norm, "a positive norm, or 0 for no clipping")
    need(loss.name in LOSSES, "loss.name", loss.name, _one_of(LOSSES))
    need(is_pattern(optim.decay), "optim.decay", optim.decay, "a regular expression over parameter paths")
    ratio, factor = optim.plateau_ratio, optim.plateau_factor
    need(0 < ratio <= 1, "optim.plateau_ratio", ratio, "a share above 0 and up to 1")
    need(0 < factor < 1, "optim.plateau_factor", factor, "a share between 0 and 1")
    need(0 < loss.smooth < math.inf, "loss.smooth", loss.smooth, "a positive number")
    need(loss.dice_over in ("case", "batch"), "loss.dice_over", loss.dice_over, "'case' or 'batch'")
    need(0 <= loss.focal_gamma < math.inf, "loss.focal_gamma", loss.focal_gamma, "0 or more")
    need(train.steps >= 1, "train.steps", train.steps, "a number from 1")
    need(train.batch >= 1, "train.batch", train.batch, "a number from 1")
    need(train.log_every >= 1, "train.log_every", train.log_every, "a number from 1")
    for field in ("eval_every", "save_every"):
        value = getattr(train, field)
        allowed = f"a positive multiple of train.log_every = {train.log_every}"
        need(value >= 1 and value % train.log_every == 0, f"train.{field}", value, allowed)
    need(train.accumulate >= 1, "train.accumulate", train.accumulate, "a number from 1")
    for step in train.snapshots:
        allowed = f"multiples of train.log_every = {train.log_every}, below train.steps = {train.steps}"
        need(0 < step < train.steps and step % train.log_every == 0, "train.snapshots", train.snapshots, allowed)
    _check_task(settings.source, model.ndim, "source")


def _check_arm(arm: ArmSettings, study: StudySettings) -> None:
    path, note = f"arms.{arm.name}", f" (arm {arm.name!r})"

    def need(ok: bool, field: str, value: Any, allowed: str) -> None:
        if not ok:
            raise _bad(field, value, f"{allowed}{note}")

    need(arm.kind in KINDS, f"{path}.kind", arm.kind, _one_of(KINDS))
    if arm.kind == "prior":
        need(arm.init == "random", f"{path}.init", arm.init, "'random' with kind 'prior', which has no network")
        need(arm.freeze == "none", f"{path}.freeze", arm.freeze, "'none' with kind 'prior', which has no network")
    for field, names, prefix in (("init", INITS, "pretrained:"), ("freeze", FREEZES, "regex:")):
        value = getattr(arm, field)
        allowed = f"{_one_of(names)}, '{prefix}PATH_REGEX'"
        need(value in names or value.startswith(prefix), f"{path}.{field}", value, allowed)
    need(arm.seed_offset >= 0, f"{path}.seed_offset", arm.seed_offset, "0 or more")
    _check_cross(arm, study.base_seed, path, need)
    largest = max(study.seeds) + arm.seed_offset
    need(largest <= MAX_SEED, f"{path}.seed_offset", arm.seed_offset, f"seed ids up to {MAX_SEED}, not {largest}")
    _check_training(arm, note)
    _check_task(study.target, arm.model.ndim, "target")
    pretrain, warmup = arm.pretrain, arm.optim.warmup_steps
    need(warmup < arm.train.steps, "optim.warmup_steps", warmup, f"fewer than train.steps = {arm.train.steps}")
    need(pretrain.steps >= 1, "pretrain.steps", pretrain.steps, "a number from 1")
    every, allowed = pretrain.eval_every, f"0, or a multiple of train.log_every = {study.train.log_every}"
    need(every >= 0 and every % study.train.log_every == 0, "pretrain.eval_every", every, allowed)
    need(pretrain.share in ("per_seed", "one"), "pretrain.share", pretrain.share, "'per_seed' or 'one'")
    need(0 <= pretrain.min_loaded <= 1, "pretrain.min_loaded", pretrain.min_loaded, "a share from 0 to 1")
    named = pretrain.from_workdir or not pretrain.from_arm
    need(bool(named), "pretrain.from_arm", pretrain.from_arm, "an arm of the study that pretrain.from_workdir names")
    _check_rates(arm, study, need)
    sizes, of_target = arm.train_cases, study.target.train_cases
    sound = len(set(sizes)) == len(sizes) and set(sizes) <= set(of_target)
    need(sound, f"arms.{arm.name}.train_cases", sizes, f"different sizes of target.train_cases = {of_target}")
    if arm.init != "random" and not pretrain.from_workdir:
        # Source networks are trained with the study's own optimizer.
        warmup = study.optim.warmup_steps
        need(warmup < pretrain.steps, "optim.warmup_steps", warmup, f"fewer than pretrain.steps = {pretrain.steps}")


def _check_cross(arm: ArmSettings, base_seed: int, path: str, need: Any) -> None:
    ids, allowed = arm.cross_ids, f"at least two different ids from 0 to {MAX_CROSSED}, with cross"
    sound = len(ids) >= 2 and len(set(ids)) == len(ids) and min(ids) >= 0 and max(ids) <= MAX_CROSSED
    need(sound if arm.cross else not ids, f"{path}.cross_ids", ids, allowed)
    streams = arm.cross
    need(len(set(streams)) == len(streams) != 1, f"{path}.cross", ",".join(streams), "'', or two or three streams")
    need(not streams or arm.seed_offset == 0, f"{path}.seed_offset", arm.seed_offset, "0 with cross: use cross_ids")
    allowed = f"a number from 0 to {MAX_CROSSED} with cross: streams that are not crossed have it as id"
    need(len(streams) in (0, len(STREAMS)) or base_seed <= MAX_CROSSED, "base_seed", base_seed, allowed)


def _check_rates(arm: ArmSettings, study: StudySettings, need: Any) -> None:
    optim = arm.optim
    grid, trials = optim.lr_grid, optim.lr_seeds
    need(all(0 < rate < math.inf for rate in grid), "optim.lr_grid", grid, "positive rates")
    need(len(set(grid)) == len(grid) != 1, "optim.lr_grid", grid, "(), or at least two different rates")
    need(bool(grid) <= bool(trials), "optim.lr_seeds", trials, "at least one seed for the trials of optim.lr_grid")
    sound = len(set(trials)) == len(trials) and all(0 <= seed <= MAX_SEED for seed in trials)
    need(sound, "optim.lr_seeds", trials, f"different numbers from 0 to {MAX_SEED}")
    used = {seed + other.seed_offset for other in study.arms for seed in study.seeds}
    used |= {seed for other in study.arms for seed in other.cross_ids} | {study.base_seed}
    allowed = "seeds that no run uses: a rate chosen on a run's own seed would favour it"
    need(not used & set(trials), "optim.lr_seeds", trials, allowed)


def check_study(study: StudySettings) -> None:
    """Checks everything that needs no data.

    Raises:
        UserError: A value outside its range, or values that contradict each other: field, value, what is allowed.
    """

    def need(ok: bool, field: str, value: Any, allowed: str) -> None:
        if not ok:
            raise _bad(field, value, allowed)

    need(0 <= study.base_seed <= MAX_SEED, "base_seed", study.base_seed, f"a number from 0 to {MAX_SEED}")
    _check_training(study, "")
    if study.target.shuffle_labels:
        raise _bad("target.shuffle_labels", True, "False: it is a control for source tasks")
    if study.target.data == "target":
        raise _bad("target.data", "target", "a folder, or synthetic:NAME; 'target' is for the source task")
    for arm in study.arms:
        _check_arm(arm, study)
    evaluate, analysis, runtime = study.evaluate, study.analysis, study.runtime
    need(0 <= evaluate.overlap < 1, "evaluate.overlap", evaluate.overlap, "a share from 0 to below 1")
    val_overlap = evaluate.val_overlap
    need(0 <= val_overlap < 1, "evaluate.val_overlap", val_overlap, "a share from 0 to below 1")
    need(evaluate.window_batch >= 1, "evaluate.window_batch", evaluate.window_batch, "a number from 1")
    need(evaluate.weights in WINDOW_WEIGHTS, "evaluate.weights", evaluate.weights, _one_of(WINDOW_WEIGHTS))
    flips, ndim = evaluate.flips, study.model.ndim
    distinct = len(set(flips)) == len(flips) and all(0 <= axis < ndim for axis in flips)
    need(distinct, "evaluate.flips", flips, f"different axes from 0 to {ndim - 1}")
    definitions, empties = ("pooled", "directed"), ("diagonal", "nan", "inf")
    need(evaluate.hd_definition in definitions, "evaluate.hd_definition", evaluate.hd_definition, str(definitions))
    need(evaluate.surface_empty in empties, "evaluate.surface_empty", evaluate.surface_empty, str(empties))
    need(evaluate.tolerance_mm >= 0, "evaluate.tolerance_mm", evaluate.tolerance_mm, "0 or more")
    need(0 < analysis.confidence < 1, "analysis.confidence", analysis.confidence, "a share between 0 and 1")
    fraction = analysis.target_fraction
    need(0 < fraction <= 1, "analysis.target_fraction", fraction, "a share above 0 and up to 1")
    need(analysis.cases >= 0, "analysis.cases", analysis.cases, "0 or more")
    for name in ("windows", "positions", "barrier_pairs"):
        need(getattr(analysis, name) >= 1, f"analysis.{name}", getattr(analysis, name), "a number from 1")
    need(runtime.seed_map in ("auto", "vmap", "loop"), "runtime.seed_map", runtime.seed_map, "auto, vmap or loop")
    residence = runtime.data_residence
    need(residence in RESIDENCES, "runtime.data_residence", residence, _one_of(RESIDENCES))
    need(runtime.keep_checkpoints >= 1, "runtime.keep_checkpoints", runtime.keep_checkpoints, "a number from 1")
    need(study.report.examples >= 0, "report.examples", study.report.examples, "0 or more")
