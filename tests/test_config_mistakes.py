"""Mistakes in a config: each is named with what was got and what is allowed, before any work."""

import json
import re

import pytest
from ml_collections import ConfigDict

from configs import default
from jaxseg import settings
from jaxseg.types import UserError
from tests.tiny_study import changed, put, tiny_config

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
        settings.parse(made)


def test_an_unknown_override_of_an_arm_is_named_with_the_nearest():
    made = tiny_config()
    put(made, "arms.transfer.optim", {"rl": 1.0})
    with pytest.raises(UserError, match=re.escape("unknown field config.arms.transfer.optim.rl; did you mean 'lr'?")):
        settings.parse(made)


@pytest.mark.parametrize("path", ["train", "train.steps", "target.augment.gamma", "arms", "arms.scratch.freeze"])
def test_a_missing_field_is_named(path):
    tree = settings.to_dict(tiny_config())
    *parents, name = path.split(".")
    where = tree
    for parent in parents:
        where = where[parent]
    del where[name]
    with pytest.raises(UserError, match=rf"config\.{path} is missing; .*default\."):
        settings.parse(settings.from_json(json.dumps(tree)))


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
    tree = settings.to_dict(tiny_config())
    *parents, name = path.split(".")
    where = tree
    for parent in parents:
        where = where[parent]
    where[name] = value
    with pytest.raises(UserError, match=re.escape(expected)):
        settings.parse(settings.from_json(json.dumps(tree)))


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
    ("target.test_data", ("a", "a"), "folders, or NAME=FOLDER with different names"),
    ("source.test_data", ("a",), "external test sets are the target's"),
    ("source.train_cases", (3,), "source networks are trained once, on all cases of their task"),
    ("source.folds", 2, "source networks are trained once, on all cases of their task"),
    ("target.val_cases", 0, "a number from 1"),
    ("target.test_cases", -1, "a number from 1, or 0"),
    ("target.folds", 0, "a number from 1"),
    ("target.patch", (8, 8, 8), "2 sizes, as model.ndim = 2"),
    ("source.patch", (8, 0), "2 sizes, as model.ndim = 2"),
    ("target.as_slices", "transverse", "'', 'sagittal', 'coronal', 'axial' with model.ndim = 2"),
    ("target.clip", (240.0, -160.0), "a lower and a higher intensity"),
    ("target.noise", -0.5, "0 or more"),
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
    ("model.encoder", "none", "'learned' or 'pooled'"),
    ("model.strides", ((2, 2), (2, 2)), "() or 1 tuples, one a level below the first, each of 2 numbers"),
    ("model.strides", ((2,),), "() or 1 tuples"),
    ("model.strides", ((0, 2),), "each of 2 numbers from 1"),
    ("model.kernels", ((3, 3),), "() or 2 tuples, one a level, each of 2 numbers"),
    ("model.residual", True, "False with model.name = 'unet'; it is a field of nnunet"),
    ("model.blocks", (2,), "() or 2 numbers from 1, one a level"),
    ("model.decoder_blocks", (2, 2), "() or 1 numbers from 1, one a level of the decoder"),
    ("model.decoder_widths", (0,), "() or numbers from 1"),
    ("model.up", "bilinear", "'nearest', 'transposed', 'depthwise'"),
    ("model.head", "none", "'product' or 'conv_norm'"),
    ("model.activation", "elu", "'relu' or 'leaky_relu'"),
    ("model.order", "norm_conv_act", "'conv_norm_act' or 'act_norm_conv'"),
    ("model.pool_padding", (0, 2), "different axes from 0 to 1"),
    ("model.pool_padding", (0,), "() with model.up = 'nearest'"),
    ("train.precision", "float16", "'float32', 'tf32', 'bfloat16'"),
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
    ("optim.head_first", 1.0, "a share from 0 to below 1"),
    ("optim.rate_factors", "^encoder/", "rules such as"),
    ("loss.name", "dise", "'dice_ce', 'dice', 'ce'"),
    ("optim.plateau_ratio", 1.5, "a share above 0 and up to 1"),
    ("optim.plateau_factor", 1.0, "a share between 0 and 1"),
    ("optim.lr_grid", (1e-3,), "(), or at least two different rates"),
    ("optim.lr_grid", (1e-3, -1.0), "positive rates"),
    ("optim.lr_seeds", (7, 7), "different numbers"),
    ("optim.lr_seeds", (1,), "seeds that no run uses"),
    ("loss.smooth", 0.0, "a positive number"),
    ("train.steps", 0, "a number from 1"),
    ("train.batch", 0, "a number from 1"),
    ("train.accumulate", 0, "a number from 1"),
    ("analysis.positions", 0, "a number from 1"),
    ("analysis.barrier_pairs", 0, "a number from 1"),
    ("train.average", 0.6, "a share from 0 to 0.5"),
    ("looks", (8, 4), "rising numbers of seeds from 2"),
    ("pretrain.runs_per_source", 0, "a number from 1"),
    ("optim.lr_choice", "each", "'joint' or 'per_arm'"),
    ("optim.lr_sizes", "some", "'every' or 'largest'"),
    ("optim.lr_factor", 0.0, "a positive factor"),
    ("analysis.sizes", "some", "'every' or 'largest'"),
    ("evaluate.val_limit", -1, "0 or more"),
    ("train.snapshots", (3,), "multiples of train.log_every = 2, below train.steps = 8"),
    ("train.snapshots", (8,), "below train.steps = 8"),
    ("target.shuffle_labels", True, "False"),
    ("target.data", "target", "'target' is for the source task"),
    ("pretrain.from_arm", "scratch", "pretrain.from_workdir"),
    ("train.log_every", 0, "a number from 1"),
    ("train.eval_every", 3, "a positive multiple of train.log_every = 2"),
    ("train.save_every", 0, "a positive multiple of train.log_every = 2"),
    ("pretrain.eval_every", 3, "0, or a multiple of train.log_every"),
    ("pretrain.steps", 0, "a number from 1"),
    ("pretrain.share", "two", "'per_seed' or 'one'"),
    ("pretrain.objective", "restored", "'labels', 'restore', 'masked'"),
    ("pretrain.min_loaded", 1.5, "a share from 0 to 1"),
    ("arms.scratch.kind", "forest", "'network' or 'prior'"),
    ("arms.scratch.cross_ids", (0, 1), "with cross"),
    ("arms.scratch.init", "pretraind", "'random', 'pretrained', 'mean_var', 'pretrained:PATH_REGEX'"),
    ("arms.scratch.freeze", "encodr", "'none', 'encoder', 'decoder', 'all_but_head', 'regex:PATH_REGEX'"),
    ("arms.scratch.train_cases", (3,), "different sizes of target.train_cases = (0,) (arm 'scratch')"),
    ("arms.scratch.train_cases", (0, 0), "different sizes"),
    ("arms.scratch.seed_offset", -1, "0 or more"),
    ("arms.scratch.seed_offset", 2**32, "seed ids up to 4294967295"),
    ("evaluate.overlap", 1.0, "a share from 0 to below 1"),
    ("evaluate.val_overlap", -0.1, "a share from 0 to below 1"),
    ("evaluate.window_batch", 0, "a number from 1"),
    ("evaluate.flips", (0, 2), "different axes from 0 to 1"),
    ("evaluate.largest_component", "a, a", "different names"),
    ("evaluate.lesion_overlap", 0.5, "without evaluate.lesions"),
    ("evaluate.lesion_min_volume", 5.0, "without evaluate.lesions"),
    ("evaluate.regions", "whole", "unions of labels such as"),
    ("target.regions", "whole", "unions of labels such as"),
    ("evaluate.regions", "@SUM(1)=a+b", "unions of labels such as"),  # a spreadsheet would run it
    ("evaluate.regions", "-1+x=a+b", "unions of labels such as"),
    ("evaluate.regions", "w\x1b[31m=a+b", "unions of labels such as"),
    ("evaluate.regions", "whole=a+", "unions of labels such as"),
    ("evaluate.regions", "x=a, x=b", "regions of different names"),
    ("evaluate.hd_definition", "max", "'pooled' or 'directed'"),
    ("evaluate.surface_empty", "0", "'diagonal', 'nan', 'inf'"),
    ("evaluate.tolerance_mm", -1.0, "0 or more"),
    ("analysis.confidence", 1.0, "a share between 0 and 1"),
    ("analysis.target_fraction", 0.0, "a share above 0 and up to 1"),
    ("analysis.cases", -1, "0 or more"),
    ("runtime.seed_map", "pmap", "'auto', 'vmap', 'loop'"),
    ("runtime.devices", "0", "'auto' or a number from 1"),
    ("runtime.keep_checkpoints", 0, "a number from 1"),
    ("report.examples", -1, "0 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "allowed"), OUT_OF_RANGE, ids=lambda value: str(value)[:24])
def test_a_value_out_of_range_is_named_with_what_is_allowed(path, value, allowed):
    made = tiny_config()
    put(made, path, value)
    with pytest.raises(UserError) as caught:
        settings.parse(made)
    assert str(caught.value).startswith(f"config.{path} = {value!r}; allowed: ")
    assert allowed in str(caught.value)


GROUPS = {"model__norm": "group", "model__groups": 2}
PADDED = {"model__up": "transposed", "model__pool_padding": (0,)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train__average": 0.2, "train__keep_best": True}, "train.average = 0.2; allowed: 0 with train.keep_best"),
        (
            {"train__average": 0.2, "optim__schedule": "plateau"},
            "train.average = 0.2; allowed: 0 with optim.schedule = 'plateau'",
        ),
        ({"pretrain__runs_per_source": 2, "pretrain__share": "one"}, "1 with pretrain.share = 'one'"),
        ({"optim__lr_grid": (0.1, 0.2), "optim__lr_seeds": (9,)}, "the same rates for all arms"),
        (
            {"model__name": "vnet", "model__blocks": (), "model__decoder_blocks": (), "model__up": "transposed"},
            "'nearest' with model.name = 'vnet'; it is a field of unet",
        ),
        ({**GROUPS, "model__head": "conv_norm"}, "'product' with a group norm"),
        ({**GROUPS, "model__order": "act_norm_conv"}, "'conv_norm_act' with a group norm"),
        ({**PADDED, "model__skips": False}, "() without skips or with a pooled encoder"),
        ({**PADDED, "model__encoder": "pooled"}, "() without skips or with a pooled encoder"),
        ({**PADDED, "model__strides": ((3, 2),)}, "axes whose model.strides are 1 or 2"),
    ],
)
def test_settings_that_do_not_go_together(fields, message):
    made = changed(**fields)
    if "optim__lr_grid" in fields:
        put(made, "arms.transfer.optim", {"lr_grid": (0.1, 0.3)})
        with_own = settings.parse(changed(**fields, optim__lr_choice="per_arm"))
        assert with_own.arms[0].optim.lr_choice == "per_arm"
    with pytest.raises(UserError, match=re.escape(message)):
        settings.parse(made)


@pytest.mark.parametrize("groups", [0, 3])
def test_a_group_norm_needs_groups_that_divide_the_widths(groups):
    with pytest.raises(UserError, match=r"model.groups = \d; allowed: a number that divides every width in \(2, 4\)"):
        settings.parse(changed(model__norm="group", model__groups=groups))
    assert settings.parse(changed(model__norm="group", model__groups=2)).arms[0].model.groups == 2


def test_an_arm_with_a_source_of_its_own_starts_from_no_other_network():
    """Given to the whole study, the networks of a folder would else be those of an arm that is named after a source."""
    made = changed(pretrain__from_workdir="elsewhere")
    made.arms.hearts = default.arm("pretrained", "none", source={"data": "synthetic:tubes"})
    with pytest.raises(
        UserError, match=r"pretrain.from_workdir = 'elsewhere'; allowed: '' for an arm with a source.data"
    ):
        settings.parse(made)
    made.arms.hearts.pretrain = dict(default.OWN_SOURCE)
    assert settings.parse(made).arms[-1].pretrain.from_workdir == ""


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
        "evaluate.ensemble",
        "evaluate.lesions",
        "evaluate.budget_tests",
        "analysis.half",
        "analysis.probes",
    }
    free |= {f"{task}.labels" for task in ("source", "target")}
    tried = {path.replace("source.", "target.") for path, _, _ in OUT_OF_RANGE} | free

    def paths(tree, prefix=""):
        for name, value in tree.items():
            if isinstance(value, dict) and prefix + name != "arms":
                yield from paths(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    declared = {path.replace("source.", "target.") for path in paths(settings.to_dict(default.get_config()))}
    assert declared - tried - {"runtime.seeds_per_chunk"} == set()  # the last is parsed as runtime.devices is


def test_a_spacing_has_one_number_an_axis_of_the_network():
    with pytest.raises(UserError, match=r"spacing_mm = \(1.0, 1.0, 1.0\); allowed: 2 numbers, as model.ndim = 2"):
        settings.parse(changed(target__spacing_mm="1, 1, 1"))
    with pytest.raises(UserError, match="allowed: 3 numbers, as the volumes that are cut into slices"):
        settings.parse(changed(target__spacing_mm="1, 1", target__as_slices="axial"))
    assert settings.parse(changed(target__spacing_mm="1, 1, 0", target__as_slices="axial")).target.window == (8, 8, 1)


def test_turns_need_equal_patch_sizes():
    with pytest.raises(UserError, match=r"rotate90 = \(0, 1\); allowed: .* the patch is \(8, 16\)"):
        settings.parse(changed(target__augment__rotate90=(0, 1), target__patch=(8, 16)))
    settings.parse(changed(target__augment__rotate90=(0, 1)))


def test_source_networks_train_longer_than_their_warm_up():
    made = changed(pretrain__steps=2)
    with pytest.raises(UserError, match=r"optim.warmup_steps = 2; .* pretrain.steps = 2 \(arm 'transfer'\)"):
        settings.parse(made)
    made.arms = default.pick_arms("scratch")
    settings.parse(made)  # trains no source network


def test_a_mistake_in_an_arm_s_override_names_the_arm():
    made = tiny_config()
    put(made, "arms.transfer.loss", {"name": "dise"})
    with pytest.raises(UserError, match=r"config.loss.name = 'dise'; allowed: .* \(arm 'transfer'\)"):
        settings.parse(made)


def test_what_source_networks_train_with_is_checked_though_every_arm_overrides_it():
    made = changed(loss__smooth=-1.0)
    for name in made.arms:
        put(made, f"arms.{name}.loss", {"smooth": 1.0})
    with pytest.raises(UserError, match=r"config.loss.smooth = -1.0"):
        settings.parse(made)


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
        settings.parse(changed(**fields))


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
        settings.parse(made)


def test_a_base_seed_must_fit_the_seed_numbers_of_crossed_runs():
    """A fourth digit would run into the next stream's: two runs could have one seed number."""
    made = changed(base_seed=1000)
    settings.parse(made)
    made.arms.scratch.update({"cross": "init,order,subset"})
    settings.parse(made)  # no stream is fed by the base seed
    made.arms.scratch.cross = "init,order"
    with pytest.raises(UserError, match=r"config\.base_seed.*1000.*a number from 0 to 999 with cross"):
        settings.parse(made)
