"""The config: its fields against the dataclasses, its files, typed values, and the copy that a workdir keeps."""

import dataclasses
import importlib
import json
import re
from pathlib import Path

import pytest

from configs import default
from jaxseg import settings
from jaxseg.settings import kinds, reference
from jaxseg.study.claims import parts
from tests.tiny_study import changed, put, tiny_config

FILES = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py"))

# ------------------------------------------------------------------------------------ default.py and the dataclasses


def test_the_default_config_declares_every_setting_with_its_type_and_default():
    def flat(tree, prefix=""):
        for name, value in tree.items():
            yield from flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]

    made = settings.to_dict(default.get_config())
    assert made["source"] == made["target"] | {"data": "synthetic:blobs?seed=1"}
    arm = settings.to_dict(default.arm(None, None))
    declared = {name: value for name, value in flat(made) if not name.startswith(("source.", "arms."))}
    declared |= {f"arms.NAME.{name}": value for name, value in arm.items()}
    stated = {field.name: field.default for field in reference.fields()}
    assert declared == stated
    assert {name: type(value) for name, value in declared.items()} == {name: type(stated[name]) for name in stated}


def test_longer_arms_follow_the_study_s_lengths():
    made = tiny_config()
    made.arms = default.pick_arms("scratch_long", config=made)
    made.train.steps = 20
    made.pretrain.steps = 6
    assert [arm.train.steps for arm in settings.parse(made).arms] == [26]
    assert settings.parse(made).train.steps == 20
    assert settings.parse(settings.from_json(settings.to_json(made))) == settings.parse(made)
    with pytest.raises(ValueError, match="'scratch_long'; pass config=config, which it follows"):
        default.pick_arms("scratch_long")
    with pytest.raises(ValueError, match="no arm 'scrach'; named arms: scratch, transfer"):
        default.pick_arms("scrach")


def test_a_source_that_is_the_target_has_its_settings():
    made = tiny_config()
    made.target.augment.gamma = 0.25
    made.target.train_cases = (2,)
    made.arms = default.pick_arms("self_transfer")
    put(made, "arms.self_transfer.source", {"data": "target", "augment": {"noise": 0.5}})
    (arm,) = settings.parse(made).arms
    target = settings.parse(made).target
    augment = dataclasses.replace(target.augment, noise=0.5)
    own = {"data": "target", "train_cases": (0,), "test_cases": 1, "augment": augment}
    assert arm.source == dataclasses.replace(target, **own)


def test_an_arm_may_vary_less_and_has_the_study_s_seeds_to_cross():
    made = tiny_config()
    made.arms.scratch.vary = "init"
    made.arms.transfer.vary = ""
    made.arms.frozen_random_encoder.cross = "init,order"
    scratch, transfer_arm, crossed = settings.parse(made).arms
    assert (scratch.vary, transfer_arm.vary, crossed.vary) == (("init",), (), ("init", "order"))
    assert (crossed.cross, crossed.cross_ids, scratch.cross_ids) == (("init", "order"), (0, 1), ())


def test_an_arm_has_all_sizes_of_the_target_or_some():
    made = tiny_config()
    made.target.train_cases = (2, 4, 0)
    made.arms.transfer.train_cases = (0,)
    scratch, transfer_arm, _ = settings.parse(made).arms
    assert (scratch.train_cases, transfer_arm.train_cases) == ((2, 4, 0), (0,))


def test_no_field_is_a_list_or_none():
    def values(tree):
        for value in tree.values():
            yield from values(value) if isinstance(value, dict) else (value,)

    assert {type(value) for value in values(settings.to_dict(default.get_config()))} == {str, int, float, bool, tuple}


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", FILES)
def test_every_config_file_parses_and_comes_back_from_json(name):
    made = importlib.import_module(f"configs.{name}").get_config()
    if name == "auto":  # --stages=plan fills these in from the images
        made.source.patch = made.target.patch = (32, 32, 32)
    study = settings.parse(made)
    assert study.name == made.name
    assert [arm.name for arm in study.arms] == list(made.arms)
    back = settings.from_json(settings.to_json(made))
    assert settings.to_dict(back) == settings.to_dict(made)
    assert settings.parse(back) == study


def test_a_config_file_with_an_argument_and_all_named_arms_parse():
    made = importlib.import_module("configs.hippocampus").get_config("scratch,mean_var")
    assert [arm.init for arm in settings.parse(made).arms] == ["random", "mean_var"]
    made = tiny_config()
    made.arms = default.pick_arms(*default.named_arms(made), config=made)
    assert [arm.name for arm in settings.parse(made).arms] == list(default.named_arms(made))
    assert len({arm.seed_offset for arm in settings.parse(made).arms}) == 2  # scratch_b has seeds of its own


def test_there_is_an_arm_for_each_number_of_pretrained_levels():
    made = tiny_config()
    made.arms = default.pick_arms("scratch", "first_k", "mean_var", "transfer", config=made)
    assert list(made.arms) == ["scratch", "first_1", "first_2", "mean_var", "transfer"]
    assert settings.to_dict(default.pick_arms("first_2").first_2) == settings.to_dict(made.arms.first_2)
    taken = [arm.init.removeprefix("pretrained:") for arm in settings.parse(made).arms][1:3]
    levels = [f"encoder/level_{level}/conv_0/kernel" for level in range(3)]
    assert [[bool(re.search(rule, level)) for level in levels] for rule in taken] == [
        [True, False, False],
        [True, True, False],
    ]
    names = [f"encoder/level_{level}/conv_0/kernel" for level in range(24)]
    for k in range(1, 21):
        rule = default.first_levels(k).init
        assert [bool(re.search(rule.removeprefix("pretrained:"), name)) for name in names] == [
            *k * [True],
            *(24 - k) * [False],
        ]
        assert parts.first_levels(rule) == k  # as the finding over these arms reads it
    with pytest.raises(ValueError, match="no arm 'first_0'"):
        default.pick_arms("first_0")
    with pytest.raises(ValueError, match="no arm 'first_k'; pass config=config, which it follows"):
        default.pick_arms("first_k")


def test_json_keeps_order_and_tuples_and_writes_plain_text():
    made = tiny_config()
    made.arms = default.pick_arms("transfer", "frozen_random_encoder", "scratch")
    put(made, "model.strides", ((1, 2),))
    text = settings.to_json(made)
    assert list(json.loads(text)["arms"]) == ["transfer", "frozen_random_encoder", "scratch"]
    back = settings.from_json(text)
    assert settings.to_json(back) == text
    assert list(back) == list(made)
    assert [arm.name for arm in settings.parse(back).arms] == ["transfer", "frozen_random_encoder", "scratch"]
    assert back.model.strides == ((1, 2),)
    assert back.target.labels == ()
    assert type(back.optim.lr) is float
    assert back.model.skips is True


def test_references_are_resolved_in_what_is_kept():
    made = tiny_config()
    made.pretrain.steps = made.train.get_ref("steps")
    made.train.steps = 12
    assert settings.from_json(settings.to_json(made)).pretrain.steps == 12
    assert settings.parse(made).arms[0].pretrain.steps == 12


# ------------------------------------------------------------------------------------------------------ typed values


def test_values_arrive_in_their_types():
    study = settings.parse(
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
    assert study.train.precision == study.arms[0].train.precision == "bfloat16"
    assert study.arms[0].train.compute == settings.Compute(precision="bfloat16", remat=True)
    assert settings.parse(changed(num_seeds=3)).seeds == (0, 1, 2)
    hash(study)  # settings are keys of dicts


@pytest.mark.parametrize("text", ["1 1 3", "1.0,1.0,3.0", "(1, 1, 3)", (1.0, 1.0, 3.0), [1, 1, 3]])
def test_a_spacing_may_be_written_in_several_ways(text):
    assert kinds.read_spacing(text, "x") == (1.0, 1.0, 3.0)


def test_labels_and_regions_are_lists_in_words():
    made = changed(evaluate__largest_component="a, b", evaluate__regions="whole=a+b, rim = b")
    evaluate = settings.parse(made).evaluate
    assert evaluate.largest_component == ("a", "b")
    assert evaluate.regions == (("whole", ("a", "b")), ("rim", ("b",)))


def test_an_arm_s_overrides_reach_that_arm_alone():
    made = tiny_config()
    put(made, "arms.transfer.optim", {"lr": 0.5})
    put(made, "arms.transfer.train", {"steps": 16, "precision": "bfloat16"})
    put(made, "arms.transfer.source", {"augment": {"gamma": 0.25}})
    put(made, "arms.transfer.pretrain", {"share": "one"})
    put(made, "arms.transfer.model", {"widths": (3, 5)})
    study = settings.parse(made)
    plain = settings.parse(tiny_config())
    scratch, transferred, frozen = study.arms
    assert (scratch, frozen) == (plain.arms[0], plain.arms[2])
    assert dataclasses.replace(study, arms=()) == dataclasses.replace(plain, arms=())
    before = plain.arms[1]
    assert transferred == dataclasses.replace(
        before,
        optim=dataclasses.replace(before.optim, lr=0.5),
        train=dataclasses.replace(before.train, steps=16, precision="bfloat16"),
        source=dataclasses.replace(before.source, augment=dataclasses.replace(before.source.augment, gamma=0.25)),
        pretrain=dataclasses.replace(before.pretrain, share="one"),
        model=dataclasses.replace(before.model, widths=(3, 5)),
    )


# ------------------------------------------------------------------------------------------------------- differences


def test_differences_name_fields_that_change_results_and_no_others():
    saved = settings.from_json(settings.to_json(tiny_config()))
    assert settings.differences(saved, tiny_config()) == []
    free = changed(runtime__devices="2", runtime__keep_checkpoints=5, report__examples=9)
    assert settings.differences(saved, free) == []
    other = changed(train__steps=10, target__patch=(4, 8))
    put(other, "arms.transfer.optim", {"lr": 0.5})
    del other.arms["scratch"]
    assert settings.differences(saved, other) == [
        "config.target.patch: [8, 8] in the workdir, [4, 8] asked for",
        "config.train.steps: 8 in the workdir, 10 asked for",
        "config.arms.scratch.kind: 'network' in the workdir, (absent) asked for",
        "config.arms.scratch.init: 'random' in the workdir, (absent) asked for",
        "config.arms.scratch.freeze: 'none' in the workdir, (absent) asked for",
        "config.arms.scratch.seed_offset: 0 in the workdir, (absent) asked for",
        "config.arms.scratch.train_cases: [] in the workdir, (absent) asked for",
        "config.arms.scratch.vary: 'study' in the workdir, (absent) asked for",
        "config.arms.scratch.cross: '' in the workdir, (absent) asked for",
        "config.arms.scratch.cross_ids: [] in the workdir, (absent) asked for",
        "config.arms.transfer.optim.lr: (absent) in the workdir, 0.5 asked for",
    ]
