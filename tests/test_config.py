"""The config: its fields against the dataclasses, its files, its mistakes, and the copy that a workdir keeps."""

import dataclasses
import importlib
import json
import re
import typing
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import default
from jaxseg import config, fields, inference, losses, models, optim, streams, transfer
from jaxseg import types as t
from jaxseg.data import normalize, resample, residence
from jaxseg.types import UserError
from tests.tiny import tiny_config

FILES = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py"))
SECTIONS = {
    "source": t.TaskSettings,
    "target": t.TaskSettings,
    "source.augment": t.AugmentSettings,
    "target.augment": t.AugmentSettings,
    "model": t.ModelSettings,
    "optim": t.OptimSettings,
    "loss": t.LossSettings,
    "train": t.TrainSettings,
    "pretrain": t.PretrainSettings,
    "evaluate": t.EvaluateSettings,
    "analysis": t.AnalysisSettings,
    "runtime": t.RuntimeSettings,
    "report": t.ReportSettings,
}


def put(where: ConfigDict, path: str, value: object) -> None:
    """Sets a field, declared or not."""
    *parents, name = path.split(".")
    for parent in parents:
        where = where[parent]
    with where.unlocked():
        where[name] = value


def at(where: ConfigDict, path: str) -> object:
    for name in path.split("."):
        where = where[name]
    return where


def changed(**fields: object) -> ConfigDict:
    """The tiny config with other values; dots are written as two underscores."""
    made = tiny_config()
    for path, value in fields.items():
        put(made, path.replace("__", "."), value)
    return made


# ------------------------------------------------------------------------------------ default.py and the dataclasses


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_a_section_is_declared_with_its_type(section):
    declared = dict(at(default.get_config(), section))
    hints = typing.get_type_hints(SECTIONS[section])
    expected = {field.name for field in dataclasses.fields(SECTIONS[section])}
    # How a network computes is declared beside the steps and the batch, and belongs to it.
    how = {"precision", "remat"}
    expected = expected - how if section == "model" else expected | how if section == "train" else expected
    assert set(declared) == expected
    for name, value in declared.items():
        kind = hints.get(name, typing.get_type_hints(t.ModelSettings).get(name))
        if (SECTIONS[section], name) in fields.PARSERS:
            kind = str  # what is parsed is text
        elif typing.get_origin(kind) is tuple:
            kind = tuple
        elif dataclasses.is_dataclass(kind):
            kind = ConfigDict
        assert type(value) is kind, name


def test_every_field_outside_the_sections_is_declared():
    made = default.get_config()
    own = {"name": str, "num_seeds": int, "seed_ids": tuple, "base_seed": int, "vary": str}
    assert {name: type(value) for name, value in made.items() if not isinstance(value, ConfigDict)} == own
    assert {name for name, value in made.items() if isinstance(value, ConfigDict)} == {
        *(section for section in SECTIONS if "." not in section),
        "arms",
    }
    # From there every field of the study is filled; pretrain is every arm's own.
    filled = {field.name for field in dataclasses.fields(t.StudySettings)}
    assert filled == (set(made) - {"num_seeds", "seed_ids", "pretrain"}) | {"seeds"}
    arm = dict(default.arm("random", "none"))
    assert {name: type(value) for name, value in arm.items()} == {
        "kind": str, "init": str, "freeze": str, "seed_offset": int, "vary": str, "cross": str, "cross_ids": tuple
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(t.ArmSettings)} == {"name", *arm, *config.ARM_OVERRIDES}


def test_longer_arms_follow_the_study_s_lengths():
    made = tiny_config()
    made.arms = default.pick_arms("scratch_long", "scratch_double", config=made)
    made.train.steps = 20
    made.pretrain.steps = 6
    assert [arm.train.steps for arm in config.parse(made).arms] == [26, 40]
    assert config.parse(made).train.steps == 20
    assert config.parse(config.from_json(config.to_json(made))) == config.parse(made)
    with pytest.raises(ValueError, match="pass config=config"):
        default.pick_arms("scratch_long")
    with pytest.raises(ValueError, match="no arm 'scrach'; named arms: scratch, transfer"):
        default.pick_arms("scrach")


def test_a_source_that_is_the_target_has_its_settings():
    made = tiny_config()
    made.target.augment.gamma = 0.25
    made.target.train_cases = (2,)
    made.arms = default.pick_arms("self_transfer")
    put(made, "arms.self_transfer.source", {"data": "target", "augment": {"noise": 0.5}})
    (arm,) = config.parse(made).arms
    target = config.parse(made).target
    augment = dataclasses.replace(target.augment, noise=0.5)
    own = {"data": "target", "train_cases": (0,), "test_cases": 1, "augment": augment}
    assert arm.source == dataclasses.replace(target, **own)


CROSSED = [
    ({"cross": "init"}, "two or three streams"),
    ({"cross": "init,ordr"}, "did you mean 'order'?"),
    ({"cross": "init,order", "cross_ids": (0, 0)}, "at least two different ids"),
    ({"cross": "init,order", "cross_ids": (0, 1000)}, "ids from 0 to 999"),
    ({"cross": "init,order", "seed_offset": 5}, "use cross_ids"),
]


@pytest.mark.parametrize(("fields", "text"), CROSSED)
def test_mistakes_of_crossed_ids(fields, text):
    made = tiny_config()
    made.arms.scratch.update(fields)
    with pytest.raises(UserError, match=re.escape(text)):
        config.parse(made)


def test_an_arm_may_vary_less_and_has_the_study_s_seeds_to_cross():
    made = tiny_config()
    made.arms.scratch.vary = "init"
    made.arms.transfer.vary = ""
    made.arms.frozen_random_encoder.cross = "init,order"
    scratch, transfer_arm, crossed = config.parse(made).arms
    assert (scratch.vary, transfer_arm.vary, crossed.vary) == (("init",), (), ("init", "order"))
    assert (crossed.cross, crossed.cross_ids, scratch.cross_ids) == (("init", "order"), (0, 1), ())


def test_no_field_is_a_list_or_none():
    def values(tree):
        for value in tree.values():
            yield from values(value) if isinstance(value, dict) else (value,)

    assert {type(value) for value in values(config.to_dict(default.get_config()))} == {str, int, float, bool, tuple}


def test_choices_are_those_of_the_modules_that_offer_them():
    assert fields.STREAMS == streams.STREAMS
    assert set(config.MODELS) == set(models.MODELS)
    assert config.OPTIMIZERS == optim.OPTIMIZERS
    assert config.SCHEDULES == optim.SCHEDULES
    assert config.LOSSES == losses.LOSSES
    assert config.NORMALIZATIONS == normalize.NAMES
    assert config.WINDOW_WEIGHTS == inference.WEIGHTS
    assert config.IMAGE_INTERPOLATIONS == resample.IMAGE_INTERPOLATIONS
    assert config.LABEL_INTERPOLATIONS == resample.LABEL_INTERPOLATIONS
    assert config.RESIDENCES == residence.RESIDENCES
    assert set(config.FREEZES) == set(optim.FREEZE_RULES)
    for init in config.INITS:
        transfer.transfer_rules(init)


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", FILES)
def test_every_config_file_parses_and_comes_back_from_json(name):
    made = importlib.import_module(f"configs.{name}").get_config()
    study = config.parse(made)
    assert study.name == made.name
    assert [arm.name for arm in study.arms] == list(made.arms)
    back = config.from_json(config.to_json(made))
    assert config.to_dict(back) == config.to_dict(made)
    assert config.parse(back) == study


def test_a_config_file_with_an_argument_and_all_named_arms_parse():
    made = importlib.import_module("configs.hippocampus").get_config("scratch,mean_var")
    assert [arm.init for arm in config.parse(made).arms] == ["random", "mean_var"]
    made = tiny_config()
    made.arms = default.pick_arms(*default.named_arms(made), config=made)
    assert [arm.name for arm in config.parse(made).arms] == list(default.named_arms(made))
    assert len({arm.seed_offset for arm in config.parse(made).arms}) == 2  # scratch_b has seeds of its own


def test_json_keeps_order_and_tuples_and_writes_plain_text():
    made = tiny_config()
    made.arms = default.pick_arms("transfer", "frozen_random_encoder", "scratch")
    put(made, "model.strides", ((1, 2),))
    text = config.to_json(made)
    assert list(json.loads(text)["arms"]) == ["transfer", "frozen_random_encoder", "scratch"]
    back = config.from_json(text)
    assert config.to_json(back) == text
    assert list(back) == list(made)
    assert [arm.name for arm in config.parse(back).arms] == ["transfer", "frozen_random_encoder", "scratch"]
    assert back.model.strides == ((1, 2),)
    assert back.target.labels == ()
    assert type(back.optim.lr) is float
    assert back.model.skips is True


def test_references_are_resolved_in_what_is_kept():
    made = tiny_config()
    made.pretrain.steps = made.train.get_ref("steps")
    made.train.steps = 12
    assert config.from_json(config.to_json(made)).pretrain.steps == 12
    assert config.parse(made).arms[0].pretrain.steps == 12


# ------------------------------------------------------------------------------------------------------ typed values


def test_values_arrive_in_their_types():
    study = config.parse(
        changed(
            seed_ids=(3, 1), vary=" order , init", optim__lr=1, target__spacing_mm="1, 2.5", runtime__devices="2",
            runtime__seeds_per_chunk="auto", model__strides=((2, 1),), train__precision="bfloat16",
            train__remat=True,
        )
    )  # fmt: skip
    assert study.seeds == (3, 1)
    assert study.vary == ("order", "init")
    assert (study.optim.lr, type(study.optim.lr)) == (1.0, float)
    assert study.target.spacing_mm == (1.0, 2.5)
    assert study.source.spacing_mm == "native"
    assert (study.runtime.devices, study.runtime.seeds_per_chunk) == (2, None)
    assert study.model.strides == ((2, 1),)
    assert study.model.precision == study.arms[0].model.precision == "bfloat16"
    assert study.model.remat is study.arms[0].model.remat is True
    assert config.parse(changed(num_seeds=3)).seeds == (0, 1, 2)
    hash(study)  # settings are keys of dicts


@pytest.mark.parametrize("text", ["1 1 3", "1.0,1.0,3.0", "(1, 1, 3)", (1.0, 1.0, 3.0), [1, 1, 3]])
def test_a_spacing_may_be_written_in_several_ways(text):
    assert fields.parse_spacing(text, "x") == (1.0, 1.0, 3.0)


def test_labels_and_regions_are_lists_in_words():
    settings = config.parse(
        changed(evaluate__largest_component="a, b", evaluate__regions="whole=a+b, rim = b")
    ).evaluate
    assert settings.largest_component == ("a", "b")
    assert settings.regions == (("whole", ("a", "b")), ("rim", ("b",)))


def test_an_arm_s_overrides_reach_that_arm_alone():
    made = tiny_config()
    put(made, "arms.transfer.optim", {"lr": 0.5})
    put(made, "arms.transfer.train", {"steps": 16, "precision": "bfloat16"})
    put(made, "arms.transfer.source", {"augment": {"gamma": 0.25}})
    put(made, "arms.transfer.pretrain", {"share": "one"})
    put(made, "arms.transfer.model", {"widths": (3, 5)})
    study = config.parse(made)
    plain = config.parse(tiny_config())
    scratch, transferred, frozen = study.arms
    assert (scratch, frozen) == (plain.arms[0], plain.arms[2])
    assert dataclasses.replace(study, arms=()) == dataclasses.replace(plain, arms=())
    before = plain.arms[1]
    assert transferred == dataclasses.replace(
        before,
        optim=dataclasses.replace(before.optim, lr=0.5),
        train=dataclasses.replace(before.train, steps=16),
        source=dataclasses.replace(before.source, augment=dataclasses.replace(before.source.augment, gamma=0.25)),
        pretrain=dataclasses.replace(before.pretrain, share="one"),
        model=dataclasses.replace(before.model, widths=(3, 5), precision="bfloat16"),
    )


# ---------------------------------------------------------------------------------------------------------- mistakes

UNKNOWN = {
    "trian": "unknown field config.trian; did you mean 'train'?",
    "train.stepz": "unknown field config.train.stepz; did you mean 'steps'?",
    "target.augment.gama": "unknown field config.target.augment.gama; did you mean 'gamma'?",
    "arms.scratch.inti": "unknown field config.arms.scratch.inti; did you mean 'init'?",
    "runtime.zzzzzz": "unknown field config.runtime.zzzzzz. Fields: seed_map,",
}


@pytest.mark.parametrize("path", UNKNOWN)
def test_an_unknown_field_is_named_with_the_nearest(path):
    made = tiny_config()
    put(made, path, 1)
    with pytest.raises(UserError, match=re.escape(UNKNOWN[path])):
        config.parse(made)


def test_an_unknown_override_of_an_arm_is_named_with_the_nearest():
    made = tiny_config()
    put(made, "arms.transfer.optim", {"rl": 1.0})
    with pytest.raises(UserError, match=re.escape("unknown field config.arms.transfer.optim.rl; did you mean 'lr'?")):
        config.parse(made)


@pytest.mark.parametrize("path", ["train", "train.steps", "target.augment.gamma", "arms", "arms.scratch.freeze"])
def test_a_missing_field_is_named(path):
    tree = config.to_dict(tiny_config())
    *parents, name = path.split(".")
    where = tree
    for parent in parents:
        where = where[parent]
    del where[name]
    with pytest.raises(UserError, match=rf"config\.{path} is missing; .*default\."):
        config.parse(config.from_json(json.dumps(tree)))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("train.steps", "many", "config.train.steps = 'many'; allowed: a value of type int"),
        ("train.steps", 1.5, "config.train.steps = 1.5; allowed: a value of type int"),
        ("train.steps", True, "config.train.steps = True; allowed: a value of type int"),
        ("model.skips", 1, "config.model.skips = 1; allowed: a value of type bool"),
        ("model.widths", [2, 4.5], "config.model.widths[1] = 4.5; allowed: a value of type int"),
        ("optim.lr", "fast", "config.optim.lr = 'fast'; allowed: a value of type float"),
        ("name", 3, "config.name = 3; allowed: a value of type str"),
        ("optim", 3, "config.optim = 3; allowed: a section of"),
        ("target.augment", 3, "config.target.augment = 3; allowed: a section of fields"),
        ("arms.scratch", 3, "config.arms.scratch = 3; allowed: a section of fields"),
        ("arms", 3, "config.arms = 3; allowed: a section of arms"),
        ("arms.transfer.optim", 3, "config.arms.transfer.optim = 3; allowed: a section of overrides"),
        ("runtime.devices", 0, "config.runtime.devices = 0; allowed: 'auto' or a number from 1"),
        ("runtime.seeds_per_chunk", "some", "config.runtime.seeds_per_chunk = 'some'; allowed: 'auto' or a number"),
    ],
)
def test_a_value_of_another_type_is_named(path, value, expected):
    # As a hand-edited config.json holds it: a ConfigDict itself refuses some of these.
    tree = config.to_dict(tiny_config())
    *parents, name = path.split(".")
    where = tree
    for parent in parents:
        where = where[parent]
    where[name] = value
    with pytest.raises(UserError, match=re.escape(expected)):
        config.parse(config.from_json(json.dumps(tree)))


OUT_OF_RANGE = [
    ("num_seeds", 0, "a number from 1"),
    ("seed_ids", (1, 1), "different numbers from 0"),
    ("seed_ids", (-1,), "different numbers from 0"),
    ("seed_ids", (2**32,), "different numbers from 0 to 4294967295"),
    ("base_seed", -1, "a number from 0 to 4294967295"),
    ("target.data", "", "a folder, or synthetic:NAME"),
    ("target.unit", "cm", "'mm' or 'voxel'"),
    ("target.train_cases", (), "sizes from 1, or 0 for all"),
    ("target.train_cases", (4, -1), "sizes from 1, or 0 for all"),
    ("target.train_cases", (4, 4), "different sizes"),
    ("target.val_cases", 0, "a number from 1"),
    ("target.test_cases", -1, "a number from 1, or 0"),
    ("target.folds", 0, "a number from 1"),
    ("target.patch", (8, 8, 8), "2 sizes, as model.ndim = 2"),
    ("source.patch", (8, 0), "2 sizes, as model.ndim = 2"),
    ("target.as_slices", "transverse", "'', 'sagittal', 'coronal', 'axial' with model.ndim = 2"),
    ("target.image_interpolation", "quintic", "'cubic', 'linear'"),
    ("target.label_interpolation", "cubic", "'linear', 'nearest'"),
    ("target.clip", (240.0, -160.0), "a lower and a higher intensity"),
    ("target.clip", (1.0,), "a lower and a higher intensity"),
    ("runtime.data_residence", "disk", "'auto', 'device', 'host'"),
    ("target.spacing_mm", "nativ", "'native', 'median', or 2 or 3 positive numbers"),
    ("target.spacing_mm", "1, -2", "2 or 3 positive numbers"),
    ("target.spacing_mm", "1, nan", "2 or 3 positive numbers"),
    ("target.foreground", 1.1, "a share from 0 to 1"),
    ("target.normalization", "z", "'zscore'"),
    ("target.bad_cases", "ignore", "'error' or 'skip'"),
    ("target.augment.flip", (2,), "different axes from 0 to 1"),
    ("target.augment.flip", (0, 0), "different axes from 0 to 1"),
    ("target.augment.rotate90", (0, 3), "different axes from 0 to 1"),
    ("target.augment.rotate90", (0,), "two or more axes of equal patch size"),
    *((f"target.augment.{name}", 1.5, "a probability from 0 to 1")
      for name in ("affine", "contrast", "blur", "low_resolution", "gamma", "brightness", "noise")),
    ("source.augment.noise", -0.1, "a probability from 0 to 1"),
    ("target.augment.rotation_deg", 200.0, "degrees from 0 to 180"),
    ("target.augment.scale", -0.5, "0 or more"),
    ("model.name", "unt", "'unet'"),
    ("model.ndim", 4, "2 or 3"),
    ("model.widths", (), "positive widths"),
    ("model.widths", (4, 0), "positive widths"),
    ("model.norm", "layer", "'none', 'instance', 'group', 'batch'"),
    ("model.groups", 2, "0 with model.norm = 'instance'"),
    ("model.groups", -1, "0 with model.norm = 'instance'"),
    ("model.dropout", 1.0, "a share from 0 to below 1"),
    ("model.dropout", -0.1, "a share from 0 to below 1"),
    ("model.encoder", "none", "'learned', 'pooled'"),
    ("model.strides", ((2, 2), (2, 2)), "() or 1 tuples, one a level below the first, each of 2 numbers"),
    ("model.strides", ((2,),), "() or 1 tuples"),
    ("model.strides", ((0, 2),), "each of 2 numbers from 1"),
    ("model.kernels", ((3, 3),), "() or 2 tuples, one a level, each of 2 numbers"),
    ("train.precision", "float16", "'float32', 'bfloat16'"),
    ("optim.name", "adm", "'adam', 'adamw', 'sgd'"),
    ("optim.lr", 0.0, "a positive rate"),
    ("optim.lr", float("inf"), "a positive rate"),
    ("optim.weight_decay", -0.1, "0 or more"),
    ("optim.weight_decay", 0.1, "0 with 'adam'"),
    ("optim.momentum", 1.0, "a share from 0 to below 1"),
    ("optim.schedule", "cos", "'constant', 'cosine', 'polynomial'"),
    ("optim.warmup_steps", -1, "0 or more"),
    ("optim.warmup_steps", 8, "fewer than train.steps = 8 (arm 'scratch')"),
    ("optim.clip_norm", -1.0, "a positive norm, or 0"),
    ("loss.name", "dise", "'dice_ce', 'dice', 'ce'"),
    ("optim.decay", "(", "a regular expression"),
    ("optim.plateau_ratio", 1.5, "a share above 0 and up to 1"),
    ("optim.plateau_factor", 1.0, "a share between 0 and 1"),
    ("optim.lr_grid", (1e-3,), "(), or at least two different rates"),
    ("optim.lr_grid", (1e-3, -1.0), "positive rates"),
    ("optim.lr_seeds", (7, 7), "different numbers"),
    ("optim.lr_seeds", (1,), "seeds that no run uses"),
    ("loss.smooth", 0.0, "a positive number"),
    ("loss.dice_over", "label", "'case' or 'batch'"),
    ("loss.focal_gamma", -1.0, "0 or more"),
    ("train.steps", 0, "a number from 1"),
    ("train.batch", 0, "a number from 1"),
    ("train.accumulate", 0, "a number from 1"),
    ("train.snapshots", (3,), "multiples of train.log_every = 2, below train.steps = 8"),
    ("train.snapshots", (8,), "below train.steps = 8"),
    ("target.shuffle_labels", True, "False"),
    ("target.data", "target", "'target' is for the source task"),
    ("pretrain.from_arm", "scratch", "pretrain.from_workdir"),
    ("train.log_every", 0, "a number from 1"),
    ("train.eval_every", 3, "a positive multiple of train.log_every = 2"),
    ("train.save_every", 0, "a positive multiple of train.log_every = 2"),
    ("pretrain.steps", 0, "a number from 1"),
    ("pretrain.share", "two", "'per_seed' or 'one'"),
    ("pretrain.min_loaded", 1.5, "a share from 0 to 1"),
    ("arms.scratch.kind", "forest", "'network', 'prior'"),
    ("arms.scratch.cross_ids", (0, 1), "with cross"),
    ("arms.scratch.init", "pretraind", "'random', 'pretrained', 'mean_var', 'pretrained:PATH_REGEX'"),
    ("arms.scratch.freeze", "encodr", "'none', 'encoder', 'decoder', 'all_but_head', 'regex:PATH_REGEX'"),
    ("arms.scratch.seed_offset", -1, "0 or more"),
    ("arms.scratch.seed_offset", 2**32, "seed ids up to 4294967295"),
    ("evaluate.overlap", 1.0, "a share from 0 to below 1"),
    ("evaluate.val_overlap", -0.1, "a share from 0 to below 1"),
    ("evaluate.window_batch", 0, "a number from 1"),
    ("evaluate.weights", "gauss", "'gaussian', 'flat'"),
    ("evaluate.flips", (0, 2), "different axes from 0 to 1"),
    ("evaluate.largest_component", "a, a", "different names"),
    ("evaluate.regions", "whole", "unions of labels such as"),
    ("evaluate.regions", "whole=a+", "unions of labels such as"),
    ("evaluate.regions", "x=a, x=b", "regions of different names"),
    ("evaluate.hd_definition", "max", "('pooled', 'directed')"),
    ("evaluate.surface_empty", "0", "('diagonal', 'nan', 'inf')"),
    ("evaluate.tolerance_mm", -1.0, "0 or more"),
    ("analysis.confidence", 1.0, "a share between 0 and 1"),
    ("analysis.target_fraction", 0.0, "a share above 0 and up to 1"),
    ("runtime.seed_map", "pmap", "auto, vmap or loop"),
    ("runtime.devices", "0", "'auto' or a number from 1"),
    ("runtime.keep_checkpoints", 0, "a number from 1"),
    ("report.examples", -1, "0 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "allowed"), OUT_OF_RANGE, ids=lambda value: str(value)[:24])
def test_a_value_out_of_range_is_named_with_what_is_allowed(path, value, allowed):
    made = tiny_config()
    put(made, path, value)
    with pytest.raises(UserError) as caught:
        config.parse(made)
    assert str(caught.value).startswith(f"config.{path} = {value!r}; allowed: ")
    assert allowed in str(caught.value)


@pytest.mark.parametrize("groups", [0, 3])
def test_a_group_norm_needs_groups_that_divide_the_widths(groups):
    with pytest.raises(UserError, match=r"model.groups = \d; allowed: a number that divides every width in \(2, 4\)"):
        config.parse(changed(model__norm="group", model__groups=groups))
    assert config.parse(changed(model__norm="group", model__groups=2)).arms[0].model.groups == 2


def test_every_checked_field_is_tried_above():
    """Fields whose every value of the right type is allowed; all others must have a row."""
    free = {
        "name",
        "vary",
        "arms",
        "runtime.store_dir",
        "pretrain.from_workdir",
        "model.skips",
        "train.remat",
        "train.keep_best",
        "pretrain.adapt_channels",
        "evaluate.save_predictions",
    }
    free |= {f"{task}.labels" for task in ("source", "target")}
    tried = {path.replace("source.", "target.") for path, _, _ in OUT_OF_RANGE} | free

    def paths(tree, prefix=""):
        for name, value in tree.items():
            if isinstance(value, dict) and prefix + name != "arms":
                yield from paths(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    declared = {path.replace("source.", "target.") for path in paths(config.to_dict(default.get_config()))}
    assert declared - tried - {"runtime.seeds_per_chunk"} == set()  # the last is parsed as runtime.devices is


def test_a_spacing_has_one_number_an_axis_of_the_network():
    with pytest.raises(UserError, match=r"spacing_mm = \(1.0, 1.0, 1.0\); allowed: 2 numbers, as model.ndim = 2"):
        config.parse(changed(target__spacing_mm="1, 1, 1"))
    with pytest.raises(UserError, match="allowed: 3 numbers, as the volumes that are cut into slices"):
        config.parse(changed(target__spacing_mm="1, 1", target__as_slices="axial"))
    assert config.parse(changed(target__spacing_mm="1, 1, 0", target__as_slices="axial")).target.window == (8, 8, 1)


def test_turns_need_equal_patch_sizes():
    with pytest.raises(UserError, match=r"rotate90 = \(0, 1\); allowed: .* the patch is \(8, 16\)"):
        config.parse(changed(target__augment__rotate90=(0, 1), target__patch=(8, 16)))
    config.parse(changed(target__augment__rotate90=(0, 1)))


def test_source_networks_train_longer_than_their_warm_up():
    made = changed(pretrain__steps=2)
    with pytest.raises(UserError, match=r"optim.warmup_steps = 2; .* pretrain.steps = 2 \(arm 'transfer'\)"):
        config.parse(made)
    made.arms = default.pick_arms("scratch")
    config.parse(made)  # trains no source network


def test_a_mistake_in_an_arm_s_override_names_the_arm():
    made = tiny_config()
    put(made, "arms.transfer.loss", {"name": "dise"})
    with pytest.raises(UserError, match=r"config.loss.name = 'dise'; allowed: .* \(arm 'transfer'\)"):
        config.parse(made)


def test_what_source_networks_train_with_is_checked_though_every_arm_overrides_it():
    made = changed(loss__smooth=-1.0)
    for name in made.arms:
        put(made, f"arms.{name}.loss", {"smooth": 1.0})
    with pytest.raises(UserError, match=r"config.loss.smooth = -1.0"):
        config.parse(made)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"vary": "init,ordr"}, r"config.vary names 'ordr'; did you mean 'order'\? Allowed: init, order, subset"),
        ({"arms": ConfigDict()}, r"config.arms is empty: name at least one arm"),
        ({"arms": ConfigDict({"a/b": default.arm("random", "none")})}, r"arm name 'a/b': allowed are letters"),
    ],
)
def test_other_mistakes(fields, text):
    with pytest.raises(UserError, match=text):
        config.parse(changed(**fields))


# ------------------------------------------------------------------------------------------------------- differences


def test_differences_name_fields_that_change_results_and_no_others():
    saved = config.from_json(config.to_json(tiny_config()))
    assert config.differences(saved, tiny_config()) == []
    free = changed(runtime__devices="2", runtime__keep_checkpoints=5, report__examples=9)
    assert config.differences(saved, free) == []
    other = changed(train__steps=10, target__patch=(4, 8))
    put(other, "arms.transfer.optim", {"lr": 0.5})
    del other.arms["scratch"]
    assert config.differences(saved, other) == [
        "config.target.patch: [8, 8] in the workdir, [4, 8] asked for",
        "config.train.steps: 8 in the workdir, 10 asked for",
        "config.arms.scratch.kind: 'network' in the workdir, (absent) asked for",
        "config.arms.scratch.init: 'random' in the workdir, (absent) asked for",
        "config.arms.scratch.freeze: 'none' in the workdir, (absent) asked for",
        "config.arms.scratch.seed_offset: 0 in the workdir, (absent) asked for",
        "config.arms.scratch.vary: 'study' in the workdir, (absent) asked for",
        "config.arms.scratch.cross: '' in the workdir, (absent) asked for",
        "config.arms.scratch.cross_ids: [] in the workdir, (absent) asked for",
        "config.arms.transfer.optim.lr: (absent) in the workdir, 0.5 asked for",
    ]
