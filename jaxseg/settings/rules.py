"""Which settings go together; what each may be by itself is in `jaxseg.settings.schema`.

What depends on data or on a network's shape (labels that exist, patches that divide) is checked where it is known, in
`jaxseg.study.plan.jobs`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from jaxseg.settings.kinds import MAX_SEED, check, distinct, one_of
from jaxseg.settings.schema import ArmSettings, EvaluateSettings, ModelSettings, StudySettings, TrainSettings
from jaxseg.settings.task_schema import SLICE_AXES, TaskSettings
from jaxseg.streams import STREAMS
from jaxseg.types import UserError

MAX_CROSSED = 999
"""Of crossed ids: three of them make one seed number."""

Need = Callable[[bool, str, Any, str], None]
"""`need(ok, field, value, allowed)` raises the mistake unless all is well."""


def needs(path: str = "config.", note: str = "") -> Need:
    """What raises a mistake: `path` stands before the field, `note` behind what is allowed."""

    def need(ok: bool, field: str, value: Any, allowed: str) -> None:
        if not ok:
            raise UserError(f"{path}{field} = {value!r}; allowed: {allowed}{note}")

    return need


def check_axes(axes: tuple[int, ...], ndim: int, field: str, need: Need) -> None:
    """Checks axes of patches."""
    sound = distinct(axes) and all(0 <= axis < ndim for axis in axes)
    need(sound, field, axes, f"different axes from 0 to {ndim - 1}")


def check_task(task: TaskSettings, ndim: int, need: Need) -> None:
    """Checks a task against itself and the network's axes.

    Raises:
        UserError: Values that contradict each other.
    """
    need(not (task.labels and task.regions), "labels", task.labels, "() with regions, which name labels themselves")
    sound = len(task.patch) == ndim and min(task.patch) >= 1
    unplanned = "" if task.patch else "; launch.study --stages=plan chooses them from the images"
    need(sound, "patch", task.patch, f"{ndim} sizes, as model.ndim = {ndim}{unplanned}")
    slices = ("", *SLICE_AXES) if ndim == 2 else ("",)
    need(task.as_slices in slices, "as_slices", task.as_slices, f"{one_of(slices)} with model.ndim = {ndim}")
    sizes, axes = task.spacing_mm, len(task.window)
    reason = "as the volumes that are cut into slices" if task.as_slices else f"as model.ndim = {ndim}"
    need(isinstance(sizes, str) or len(sizes) == axes, "spacing_mm", sizes, f"{axes} numbers, {reason}")
    for name in ("flip", "rotate90"):
        check_axes(getattr(task.augment, name), ndim, f"augment.{name}", need)
    turned = task.augment.rotate90
    equal = len(turned) != 1 and len({task.patch[axis] for axis in turned}) <= 1
    allowed = f"two or more axes of equal patch size; the patch is {task.patch}"
    need(equal, "augment.rotate90", turned, allowed)


OF_NETWORKS = {
    "blocks": ("unet", "nnunet"),
    "decoder_blocks": ("unet", "nnunet"),
    "residual": ("nnunet",),
    "decoder_widths": ("unet",),
    "up": ("unet",),
    "pool_padding": ("unet",),
    "head": ("unet",),
    "activation": ("unet",),
    "order": ("unet",),
}
"""Fields of the model that only some networks have; with the others they keep their default."""


def _check_model(model: ModelSettings, need: Need) -> None:
    for field, names in OF_NETWORKS.items():
        value, default = getattr(model, field), getattr(ModelSettings, field)
        allowed = f"{default!r} with model.name = {model.name!r}; it is a field of {' and '.join(names)}"
        need(model.name in names or value == default, f"model.{field}", value, allowed)
    for field, count in (("blocks", 0), ("decoder_blocks", 1), ("decoder_widths", 1)):
        value, levels = getattr(model, field), len(model.widths) - count
        allowed = f"() or {levels} numbers from 1, one a level{' of the decoder' if count else ''}"
        need(not value or len(value) == levels, f"model.{field}", value, allowed)
    _check_pool_padding(model, need)
    for field, count, of in (("strides", len(model.widths) - 1, "below the first"), ("kernels", len(model.widths), "")):
        levels = getattr(model, field)
        sound = all(len(axes) == model.ndim and min(axes) >= 1 for axes in levels)
        allowed = f"() or {count} tuples, one a level {of}".rstrip() + f", each of {model.ndim} numbers from 1"
        need(not levels or (len(levels) == count and sound), f"model.{field}", levels, allowed)
    groups = model.groups
    if model.norm == "group":
        widths = (*model.widths, *model.decoder_widths)
        divide = groups >= 1 and all(width % groups == 0 for width in widths)
        need(divide, "model.groups", groups, f"a number that divides every width in {widths}")
        need(model.head == "product", "model.head", model.head, "'product' with a group norm, as it has a norm itself")
        allowed = "'conv_norm_act' with a group norm: channels in front of a convolution come from several layers"
        need(model.order == "conv_norm_act", "model.order", model.order, allowed)
    else:
        need(groups == 0, "model.groups", groups, f"0 with model.norm = {model.norm!r}; it is of the group norm")


def _check_pool_padding(model: ModelSettings, need: Need) -> None:
    axes = model.pool_padding
    check_axes(axes, model.ndim, "model.pool_padding", need)
    steps = {step for strides in model.strides for axis, step in enumerate(strides) if axis in axes}
    need(steps <= {1, 2}, "model.pool_padding", axes, "axes whose model.strides are 1 or 2")
    whole = model.skips and model.encoder == "learned"
    need(not axes or whole, "model.pool_padding", axes, "() without skips or with a pooled encoder")
    allowed = "() with model.up = 'nearest'; the upsampled features are cropped to the encoder's"
    need(not axes or model.up != "nearest", "model.pool_padding", axes, allowed)


def _check_train(train: TrainSettings, need: Need) -> None:
    for field in ("eval_every", "save_every"):
        value = getattr(train, field)
        allowed = f"a positive multiple of train.log_every = {train.log_every}"
        need(value >= 1 and value % train.log_every == 0, f"train.{field}", value, allowed)
    allowed = f"multiples of train.log_every = {train.log_every}, below train.steps = {train.steps}"
    need(not (train.average and train.keep_best), "train.average", train.average, "0 with train.keep_best")
    sound = all(0 < step < train.steps and step % train.log_every == 0 for step in train.snapshots)
    need(sound, "train.snapshots", train.snapshots, allowed)


def _check_training(settings: StudySettings | ArmSettings, note: str = "") -> None:
    """What a study and each of its arms have: model, optim, train and source."""
    need = needs(note=note)
    _check_model(settings.model, need)
    optim = settings.optim
    average = settings.train.average  # beside which a validation between its windows would look like a fall
    need(not (average and optim.schedule == "plateau"), "train.average", average, "0 with optim.schedule = 'plateau'")
    decays = optim.name != "adam" or optim.weight_decay == 0
    need(decays, "optim.weight_decay", optim.weight_decay, "0 with 'adam', which has no decay; 'adamw' and 'sgd' have")
    _check_train(settings.train, need)
    check_task(settings.source, settings.model.ndim, needs("config.source.", note))


def _check_arm(arm: ArmSettings, study: StudySettings) -> None:
    path, note = f"arms.{arm.name}", f" (arm {arm.name!r})"
    need = needs(note=note)
    check(arm, f"config.{path}.", note, sections="config.")
    if arm.kind == "prior":
        need(arm.init == "random", f"{path}.init", arm.init, "'random' with kind 'prior', which has no network")
        need(arm.freeze == "none", f"{path}.freeze", arm.freeze, "'none' with kind 'prior', which has no network")
    _check_cross(arm, study.base_seed, path, need)
    _check_offset(arm, study, path, need)
    _check_training(arm, note)
    check_task(study.target, arm.model.ndim, needs("config.target.", note))
    pretrain, warmup = arm.pretrain, arm.optim.warmup_steps
    need(warmup < arm.train.steps, "optim.warmup_steps", warmup, f"fewer than train.steps = {arm.train.steps}")
    every, allowed = pretrain.eval_every, f"0, or a multiple of train.log_every = {study.train.log_every}"
    need(every >= 0 and every % study.train.log_every == 0, "pretrain.eval_every", every, allowed)
    nested = pretrain.runs_per_source
    need(nested == 1 or pretrain.share != "one", "pretrain.runs_per_source", nested, "1 with pretrain.share = 'one'")
    need(nested == 1 or "fold" not in study.vary, "pretrain.runs_per_source", nested, "1 where vary holds 'fold'")
    named = pretrain.from_workdir or not pretrain.from_arm
    need(bool(named), "pretrain.from_arm", pretrain.from_arm, "an arm of the study that pretrain.from_workdir names")
    if arm.init != "random":
        _check_objective(arm, need)
    _check_rates(arm, study, need)
    given = pretrain.from_workdir if arm.init != "random" else ""
    made = arm.source.shuffle_labels or arm.source.data == "target"
    allowed = "'' where source.shuffle_labels or source.data = 'target' ask for networks that the study trains itself"
    need(not (given and made), "pretrain.from_workdir", given, allowed)
    allowed = f"'' for an arm with a source.data of its own ({arm.source.data!r}), on which the study pretrains"
    need(not given or arm.source.data == study.source.data, "pretrain.from_workdir", given, allowed)
    sizes, of_target = arm.train_cases, study.target.train_cases
    sound = distinct(sizes) and set(sizes) <= set(of_target)
    need(sound, f"{path}.train_cases", sizes, f"different sizes of target.train_cases = {of_target}")
    if arm.init != "random" and not pretrain.from_workdir:
        # Source networks are trained with the study's own optimizer.
        warmup = study.optim.warmup_steps
        need(warmup < pretrain.steps, "optim.warmup_steps", warmup, f"fewer than pretrain.steps = {pretrain.steps}")


def _check_offset(arm: ArmSettings, study: StudySettings, path: str, need: Need) -> None:
    """Checks the seeds of an arm that has others than the study, up to the last look: later nothing can be changed."""
    offset, seeds = arm.seed_offset, study.declared_seeds
    largest = max(seeds) + offset
    need(largest <= MAX_SEED, f"{path}.seed_offset", offset, f"seed ids up to {MAX_SEED}, not {largest}")
    beside = [other.name for other in study.arms if other.kind == "network" and not (other.seed_offset or other.cross)]
    shared = sorted({*seeds} & {seed + offset for seed in seeds}) if offset else []
    look = f" up to the look at {study.looks[-1]}" if len(seeds) > len(study.seeds) else ""
    allowed = (
        f"0, or a number that makes its seeds others than those of arm(s) {', '.join(beside)}{look}, such as 1000; "
        f"these too have seed(s) {', '.join(map(str, shared))}"
    )
    need(arm.kind == "prior" or not (shared and beside), f"{path}.seed_offset", offset, allowed)


def _check_objective(arm: ArmSettings, need: Need) -> None:
    objective, labels = arm.pretrain.objective, arm.pretrain.objective == "labels"
    allowed = "'labels' with pretrain.from_workdir, whose networks are trained already; set it for other arms"
    need(labels or not arm.pretrain.from_workdir, "pretrain.objective", objective, allowed)
    allowed = f"False with pretrain.objective = {objective!r}, which uses no labels"
    need(labels or not arm.source.shuffle_labels, "source.shuffle_labels", True, allowed)


def _check_cross(arm: ArmSettings, base_seed: int, path: str, need: Need) -> None:
    ids, allowed = arm.cross_ids, f"at least two different ids from 0 to {MAX_CROSSED}, with cross"
    sound = len(ids) >= 2 and distinct(ids) and min(ids) >= 0 and max(ids) <= MAX_CROSSED
    need(sound if arm.cross else not ids, f"{path}.cross_ids", ids, allowed)
    streams = arm.cross
    need(distinct(streams) and len(streams) != 1, f"{path}.cross", ",".join(streams), "'', or two or three streams")
    need(not streams or arm.seed_offset == 0, f"{path}.seed_offset", arm.seed_offset, "0 with cross: use cross_ids")
    allowed = f"a number from 0 to {MAX_CROSSED} with cross: streams that are not crossed have it as id"
    need(len(streams) in (0, len(STREAMS)) or base_seed <= MAX_CROSSED, "base_seed", base_seed, allowed)


def _untested(study: StudySettings, seeds: Collection[int]) -> str:
    """Says which folds none of these seeds is tested on, where folds rotate over seeds; empty if there are none."""
    folds = study.target.folds
    missing = sorted({*range(folds)} - {seed % folds for seed in seeds}) if "fold" in study.vary else []
    named = ", ".join(map(str, missing))
    return f"seed s is tested on fold s mod {folds}, and none on fold {named}" if missing else ""


def _check_rates(arm: ArmSettings, study: StudySettings, need: Need) -> None:
    grid, trials = arm.optim.lr_grid, arm.optim.lr_seeds
    need(bool(grid) <= bool(trials), "optim.lr_seeds", trials, "at least one seed for the trials of optim.lr_grid")
    joint = [other.optim.lr_grid for other in study.arms if other.optim.lr_grid and other.optim.lr_choice == "joint"]
    one_grid = arm.optim.lr_choice == "per_arm" or not grid or all({*other} == {*grid} for other in joint)
    need(one_grid, "optim.lr_grid", grid, "the same rates for all arms, with optim.lr_choice = 'joint'")
    tries = any(other.tries_rates for other in study.arms)
    sound = arm.optim.lr_factor == 1 or not grid or (tries and arm.optim.lr_choice == "joint")
    allowed = "1 with optim.lr_grid, or an arm beside with factor 1 that tries the rates and optim.lr_choice = 'joint'"
    need(sound, "optim.lr_factor", arm.optim.lr_factor, allowed)
    sizes, alone = arm.optim.lr_sizes, arm.optim.lr_choice == "per_arm"
    need(sizes == "every" or not alone, "optim.lr_sizes", sizes, "'every', with optim.lr_choice = 'per_arm'")
    left = _untested(study, trials) if grid and alone else ""
    allowed = "seeds that try every fold, as vary holds 'fold' and optim.lr_choice = 'per_arm' chooses a rate for each"
    need(not left, "optim.lr_seeds", trials, f"{allowed}; {left}")
    used = {seed + other.seed_offset for other in study.arms for seed in study.declared_seeds}
    used |= {seed for other in study.arms for seed in other.cross_ids} | {study.base_seed}
    allowed = "seeds that no run uses, up to the last of looks: a rate chosen on a run's own seed would favour it"
    need(not used & set(trials), "optim.lr_seeds", trials, allowed)


def check_network(model: ModelSettings) -> None:
    """Checks the settings of a network by themselves.

    Raises:
        UserError: A value outside its range, or values that contradict each other.
    """
    check(model, "config.model.")
    _check_model(model, needs())


def check_study(study: StudySettings) -> None:
    """Checks everything that needs no data.

    Raises:
        UserError: A value outside its range, or values that contradict each other: field, value, what is allowed.
    """
    need = needs()
    check(study, "config.")
    _check_training(study)
    allowed = f"{TaskSettings.test_data!r}: external test sets are the target's"
    for where, task in (("source", study.source), *((f"arms.{arm.name}.source", arm.source) for arm in study.arms)):
        unused = task.test_data in ((), TaskSettings.test_data)
        need(unused, f"{where}.test_data", task.test_data, allowed)
        none = "source networks are trained once, on all cases of their task that are not held out"
        alike = task == study.target  # which is spoken of when the patients are known
        need(alike or task.train_cases == (0,), f"{where}.train_cases", task.train_cases, f"(0,): {none}")
        need(alike or task.folds == 1, f"{where}.folds", task.folds, f"1: {none}")
    need(not study.target.shuffle_labels, "target.shuffle_labels", True, "False: it is a control for source tasks")
    allowed = "a folder, or synthetic:NAME; 'target' is for the source task"
    need(study.target.data != "target", "target.data", study.target.data, allowed)
    several = "fold" not in study.vary or study.target.folds > 1
    need(several, "vary", ",".join(study.vary), "no 'fold' with target.folds = 1")
    field, value = ("seed_ids", study.seed_ids) if study.seed_ids else ("num_seeds", study.num_seeds)
    left = _untested(study, study.seeds)
    need(not left, field, value, f"seeds that test every fold, as vary holds 'fold'; {left}")
    for arm in study.arms:
        _check_arm(arm, study)
    check_axes(study.evaluate.flips, study.model.ndim, "evaluate.flips", need)
    for field in ("lesion_overlap", "lesion_min_volume"):
        value, default = getattr(study.evaluate, field), getattr(EvaluateSettings, field)
        allowed = f"{default!r} without evaluate.lesions, the labels that it is about"
        need(bool(study.evaluate.lesions) or value == default, f"evaluate.{field}", value, allowed)
