"""Settings proposed from made fingerprints: what each kind of images gets, and that every one is a valid config."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from configs import auto
from jaxseg import settings
from jaxseg.models import make_model
from jaxseg.study.plan import cost
from jaxseg.study.plan.jobs import check_networks
from jaxseg.study.plan.program import measure
from jaxseg.study.proposal import grid, network
from jaxseg.study.proposal.choice import Choice, Proposal, as_lines
from jaxseg.study.proposal.fingerprint import ChannelProfile, Fingerprint, LabelProfile
from jaxseg.study.proposal.images import flips as flips_of
from jaxseg.study.proposal.machine import Resources, rough_parameters
from jaxseg.study.proposal.rules import propose
from jaxseg.types import UserError
from launch.planning import put

LAPTOP = Resources(7200.0, 32.0, cost.Speed(1e11, 1e10, 2e10), 8 * 2**30)
GPU = Resources(7200.0, 32.0, cost.Speed(2e13, 2e12, 1e12), 60 * 2**30)


def label(name="x", share=0.02, extent=(30.0, 30.0, 30.0), thickness=20.0, present=1.0):
    return LabelProfile(name, present, share, extent, thickness)


def found(shape, spacing, labels=None, *, modality=("MRI",), cases=60, groups=None, spread=1.0, zeros=0.0, dark=0.01):
    """A fingerprint whose images differ in voxel size by a factor of `spread`."""
    axes = len(shape)
    labels = (label(),) if labels is None else labels
    labels = tuple(LabelProfile(n.name, n.present, n.share, n.extent_mm[:axes], n.thickness_mm) for n in labels)
    return Fingerprint(
        data="DATA",
        name="made",
        cases=cases,
        groups=groups or cases,
        read=min(cases, 40),
        shape=tuple(map(float, shape)),
        largest=tuple(shape),
        spacing_mm=tuple(spacing),
        spacing_range=tuple((size, size * spread) for size in spacing),
        channels=tuple(ChannelProfile(name, 0.0, 500.0, 1.2, zeros, dark) for name in modality),
        labels=labels,
        classes=len(labels) + 1,
    )


def proposed(target, source=None, resources=LAPTOP, **fixed) -> Proposal:
    """The proposal with some fields fixed, each with `__` for the dot of its name."""
    kept = {name.replace("__", "."): value for name, value in fixed.items()}
    return propose(target, {"source": source} if source else {}, resources, fixed=kept, meter=network.ROUGH)


def test_thick_stacks_are_halved_within_slices_first():
    made = proposed(found((320, 320, 12), (0.8, 0.8, 8.0), [label(extent=(60.0, 60.0, 60.0), thickness=12.0)]))
    assert made.value("model.ndim") == 3
    assert made.value("model.strides")[0] == (2, 2, 1)
    assert made.value("model.kernels")[0] == (3, 3, 1)
    assert made.value("model.kernels")[-1] == (3, 3, 3)
    assert made.value("target.spacing_mm").endswith(", 0") or made.value("target.spacing_mm") == "native"
    assert made.value("target.patch")[2] <= 16
    assert made.value("target.augment.affine") == 0.0


def test_steps_and_patch_share_what_time_is_missing():
    seen = grid.view(found((36, 50, 36), (1.0, 1.0, 1.0), [label(extent=(22.0, 39.0, 26.0), thickness=4.0)]))
    made = [
        network.choose(seen, grid.grids(seen), dataclasses.replace(LAPTOP, seconds=seconds), channels=1, classes=2)
        for seconds in (200.0, 400.0, 800.0, 1600.0, 100_000.0)
    ]
    tight = made[:4]
    assert [one.covered for one in made] == sorted(one.covered for one in made)
    assert all(one.widths[0] == 8 and one.covered < network.COVERED for one in tight)
    for one in tight:
        # Patches are multiples of the strides, so that shares agree only roughly.
        assert one.steps >= network.FEWEST_STEPS
        assert one.steps == pytest.approx(max(network.FEWEST_STEPS, 1500 * one.covered), rel=0.3)
    assert made[-1].covered >= 1
    assert made[-1].steps >= 1500


def test_stacks_of_few_slices_are_segmented_in_two_dimensions():
    made = proposed(found((320, 320, 4), (0.8, 0.8, 8.0)))
    assert made.value("model.ndim") == 2
    assert made.value("target.as_slices") == "axial"
    assert len(made.value("target.patch")) == 2
    assert proposed(found((320, 4, 320), (0.8, 8.0, 0.8))).value("target.as_slices") == "coronal"


def test_tiny_volumes_are_one_patch():
    made = proposed(found((20, 20, 20), (1.0, 1.0, 1.0), [label(extent=(10.0, 10.0, 10.0), thickness=6.0)]))
    assert made.value("target.patch") == (20, 20, 20)
    assert made.value("target.spacing_mm") == "native"


def test_large_ct_is_made_coarser_on_two_cores_and_stays_finer_on_a_gpu():
    organ = label("liver", 0.03, (250.0, 220.0, 200.0), 110.0)
    vessel = label("vessel", 0.004, (120.0, 120.0, 120.0), 13.0)
    large = found((512, 512, 300), (0.8, 0.8, 1.0), [organ, vessel], modality=("CT",))
    slow, fast = proposed(large), proposed(large, resources=GPU)
    coarse = min(float(size) for size in slow.value("target.spacing_mm").split(", "))
    assert fast.value("target.spacing_mm") == "native"
    assert 0.8 < coarse <= 13.0 / grid.LEAST_ACROSS
    assert math.prod(fast.value("target.patch")) > 4 * math.prod(slow.value("target.patch"))
    assert max(fast.value("target.patch")) <= grid.LONGEST[3] + 16
    assert slow.value("target.normalization") == "dataset"


def test_pictures_of_odd_sizes():
    pictures = found((301, 219), (1.0, 1.0), modality=("R microscopy", "G microscopy", "B microscopy"), spread=1.0)
    made = proposed(pictures)
    assert made.value("model.ndim") == 2
    assert made.value("target.unit") == "voxel"
    assert made.value("target.augment.flip") == (0, 1)
    assert len(made.value("target.patch")) == 2
    assert proposed(found((301, 219), (0.5, 0.5))).value("target.unit") == "mm"


def test_tiny_lesions_keep_the_grid_and_are_sought():
    made = proposed(found((180, 220, 180), (1.0, 1.0, 1.0), [label("lesion", 2e-5, (5.0, 5.0, 5.0), 3.5)]))
    assert made.value("target.spacing_mm") == "native"
    assert made.value("target.foreground") == 0.75
    (reason,) = (choice.reason for choice in made.choices if choice.field == "target.foreground")
    assert "lesion takes 2.0e-05" in reason


def test_many_labels_take_memory_that_patches_give_up():
    few = found((200, 200, 200), (1.0,) * 3, [label(extent=(90.0,) * 3)])
    many = found((200, 200, 200), (1.0,) * 3, [label(f"part {i}", extent=(90.0,) * 3) for i in range(40)])
    tight = Resources(1e6, 1.0, cost.Speed(2e13, 2e12, 1e12), 2**30)
    small, large = (math.prod(proposed(one, resources=tight).value("target.patch")) for one in (many, few))
    assert small < large


@pytest.mark.parametrize(
    ("modality", "zeros", "dark", "expected"),
    [
        (("CT",), 0.0, 0.1, "dataset"),
        (("MRI",), 0.0, 0.1, "zscore"),
        (("MRI",), 0.6, 0.3, "zscore"),
        (("T1", "FLAIR"), 0.6, 0.001, "zscore_nonzero"),
        (("US",), 0.6, 0.001, "zscore"),
        (("CT", "PET"), 0.0, 0.1, "auto"),
    ],
)
def test_intensities_follow_the_modality(modality, zeros, dark, expected):
    images = found((64, 64, 64), (1.0,) * 3, modality=modality, zeros=zeros, dark=dark)
    assert proposed(images).value("target.normalization") == expected


def test_labels_with_sides_are_not_mirrored():
    def flips(name):
        images = found((64, 64, 64), (1.0,) * 3, [label(name)])
        return flips_of(images, grid.view(images))[0]

    for name in ("left kidney", "Parotid_L", "hippocampus (right)", "LEFT_LUNG", "leftkidney", "RightAngle"):
        assert flips(name) == (), name
    for name in ("LeftKidney", "leftKidney", "KidneyLeft", "LKidney", "ParotidR", "KidneyLUpper", "lungsRight"):
        assert flips(name) == (), name
    for name in ("clavicle", "Lesion", "Liver", "LUNG", "Rib", "LV", "RV", "LVCavity", "MRIRegion", "cleft", "upright"):
        assert flips(name) == (0,), name


def test_voxel_sizes_that_differ_become_one():
    same = found((64, 64, 40), (0.9, 0.9, 2.0), spread=1.05)
    assert proposed(same, resources=GPU).value("target.spacing_mm") == "native"
    differing = found((64, 64, 40), (0.9, 0.9, 2.0), spread=1.5)
    assert proposed(differing, resources=GPU).value("target.spacing_mm") == "0.9, 0.9, 2"


def test_runs_fit_the_budget_or_it_is_said():
    images = found((64, 64, 64), (1.0,) * 3)
    steps = {}
    for seconds in (60.0, 600.0, 7200.0, 1e8):
        resources = Resources(seconds, 40.0, LAPTOP.speed, LAPTOP.memory_bytes)
        made = proposed(images, resources=resources)
        model = settings.ModelSettings(
            ndim=3,
            widths=made.value("model.widths"),
            strides=made.value("model.strides") or ((2, 2, 2),) * (len(made.value("model.widths")) - 1),
            kernels=made.value("model.kernels") or ((3, 3, 3),) * len(made.value("model.widths")),
        )
        work = network.rough_work(model, made.value("target.patch"), 1, 2)
        steps[seconds] = made.value("train.steps")
        training = steps[seconds] * made.value("train.batch") * resources.step_seconds(work)
        assert training < resources.run_seconds or any("in which little is learned" in note for note in made.notes)
    assert steps[60.0] < 500 < steps[7200.0]
    assert steps[1e8] == 20_000


@pytest.mark.parametrize("steps", [100, 700, 5000, 40_000])
def test_given_steps_are_followed_and_the_budget_is_kept_or_it_is_said(steps):
    images = found((64, 64, 64), (1.0,) * 3)
    made = proposed(images, train__steps=steps)
    free = proposed(images)
    assert (made.value("train.steps"), made.value("pretrain.steps")) == (steps, steps)
    assert made.value("train.log_every") == steps // 50
    assert made.value("optim.warmup_steps") == min(20, steps // 10)
    kept = not any("cannot be kept" in note for note in made.notes)
    assert kept == (steps < 40_000)
    if steps < free.value("train.steps"):  # larger batches and patches have the time that fewer steps leave
        size = [math.prod(one.value("target.patch")) * one.value("train.batch") for one in (made, free)]
        assert size[0] > size[1]


def test_other_fields_that_are_given_leave_fewer_steps():
    images = found((64, 64, 64), (1.0,) * 3)
    steps = proposed(images).value("train.steps")
    for fixed in (
        {"train__batch": 8},
        {"train__accumulate": 8},
        {"model__widths": (32, 64, 128)},
        {"target__patch": (64, 64, 64)},
        {"target__folds": 2},
        {"evaluate__flips": (0, 1, 2)},
        {"evaluate__budget_tests": True},
    ):
        made = proposed(images, **fixed)
        assert made.value("train.steps") < steps, fixed
        assert not any("cannot be kept" in note for note in made.notes), fixed
    late = dataclasses.replace(LAPTOP, other_steps=steps / 2)
    assert proposed(images, resources=late).value("train.steps") < steps
    with pytest.raises(UserError, match="patch"):
        proposed(images, target__patch=(64, 64))


@pytest.mark.parametrize("value", ["2, 2, 2", (2.0, 2.0, 2.0)])
def test_a_given_grid_is_the_one_that_patch_and_steps_are_for(value):
    images = found((128, 128, 128), (1.0,) * 3)
    made = proposed(images, target__spacing_mm=value)
    assert max(made.value("target.patch")) <= 64  # what an image has on that grid
    assert made.value("target.spacing_mm") == "2, 2, 2"
    large = found((128, 128, 128), (1.0,) * 3, (label(extent=(100.0,) * 3, thickness=60.0),))
    coarse = proposed(large, large, GPU, target__spacing_mm="2, 2, 2", source__spacing_mm="4, 0, 4")
    size = coarse.value("source.patch")
    assert max(size[0], size[2]) <= 32 < size[1]
    assert proposed(images, target__spacing_mm="native").value("target.spacing_mm") == "native"
    for wrong in ("2, 2", "fine", "2, 2, -1"):
        with pytest.raises(UserError, match=r"^config\.target\.spacing_mm = .*; allowed: 'native', 'median', or"):
            proposed(images, target__spacing_mm=wrong)


def test_given_axes_and_slices_are_followed():
    volumes, pictures = found((128, 100, 64), (1.0, 1.0, 1.2)), found((90, 90), (1.0, 1.0))
    assert proposed(volumes).value("model.ndim") == 3
    made = proposed(volumes, model__ndim=2)
    assert (made.value("target.as_slices"), len(made.value("target.patch"))) == ("axial", 2)
    made = proposed(volumes, target__as_slices="coronal")
    assert (made.value("model.ndim"), made.value("target.as_slices")) == (2, "coronal")
    assert all(size <= most for size, most in zip(made.value("target.patch"), (128, 64), strict=True))
    few = found((128, 100, 4), (1.0, 1.0, 6.0))
    assert proposed(few).value("model.ndim") == 2
    assert proposed(few, target__as_slices="").value("model.ndim") == 3
    for asked, text in (
        ({"model__ndim": 3}, r"config\.model\.ndim = 3; allowed: 2, as the source's images are 2-D"),
        ({"source__as_slices": "axial"}, r"config\.source\.as_slices = 'axial'; allowed: '', as the source's"),
        ({"target__as_slices": ""}, r"config\.target\.as_slices = ''; allowed: 'sagittal', 'coronal', 'axial'"),
    ):
        with pytest.raises(UserError, match=f"^{text}"):
            proposed(volumes, pictures, **asked)


def test_more_slices_cost_more():
    thick = found((128, 128, 20), (1.0, 1.0, 5.0), cases=200)
    own, finer = (proposed(thick, model__ndim=2, target__spacing_mm=f"1, 1, {edge}", train__batch=4) for edge in (0, 1))
    assert finer.value("train.steps") < own.value("train.steps")


def test_a_source_shares_network_and_grid_where_its_voxels_allow():
    target = found((64, 64, 64), (1.0,) * 3)
    near, thick = found((90, 90, 60), (1.2, 1.2, 1.5)), found((256, 256, 9), (1.25, 1.25, 8.0))
    assert proposed(target, near, GPU).value("source.spacing_mm") == "1, 1, 1"
    made = proposed(target, thick, GPU)
    assert made.value("source.spacing_mm").endswith(", 0") or made.value("source.spacing_mm") == "native"
    assert made.value("source.patch")[2] < made.value("target.patch")[2]
    assert (
        proposed(target, found((64, 64, 64), (1.0,) * 3, modality=("CT",))).value("source.normalization") == "dataset"
    )


def test_volumes_are_sliced_beside_images():
    made = proposed(found((200, 180), (0.5, 0.5)), found((100, 100, 30), (1.0, 1.0, 4.0)))
    assert (made.value("model.ndim"), made.value("source.as_slices")) == (2, "axial")
    assert proposed(found((200, 180, 60), (1.0, 1.0, 1.0)), found((90, 90), (1.0, 1.0))).value("model.ndim") == 2


def test_rough_estimates_are_near_those_of_the_traced_network():
    """The search goes by sizes of convolutions; what is traced has the last word."""
    levels = grid.levels((32, 32, 32), (1.0, 1.0, 1.0))
    levels = grid.Levels(levels.strides[:1], levels.kernels[:2])
    made = network.Network((1.0,) * 3, (32,) * 3, (32,) * 3, levels, (16, 32), 0)
    program = network.program_of(made, batch=2, channels=1, classes=3)
    assert program.model.kernels == ()  # as the config has them: in vnet these are of 5 voxels, which take their time
    exact, rough, measured = cost.step_work(program), network.ROUGH.work(program), measure(program)
    assert rough.flops == pytest.approx(exact.flops, rel=1 / 3)
    assert rough.written == pytest.approx(exact.written, rel=1 / 3)
    assert 0.8 < network.ROUGH.size(program).activation_bytes / measured.activation_bytes < 1.8  # rather too much
    assert rough_parameters(made.model, 1, 3) == pytest.approx(measured.parameters, rel=0.05)


# ------------------------------------------------------------------------------------------------- any fingerprint


@st.composite
def fingerprints(draw):
    axes = draw(st.sampled_from([2, 3]))
    shape = draw(st.tuples(*[st.integers(1, 600)] * axes))
    spacing = draw(st.tuples(*[st.floats(0.01, 20.0)] * axes))
    lengths = [n * size for n, size in zip(shape, spacing, strict=True)]
    labels = [
        label(
            f"part {index}",
            share := draw(st.floats(1e-6, 1.0)),
            tuple(max(size, share * length) for size, length in zip(spacing, lengths, strict=True)),
            draw(st.floats(min(spacing), max(min(spacing), max(lengths)))),
            draw(st.floats(0.01, 1.0)),
        )
        for index in range(draw(st.integers(0, 40)))
    ]
    return found(
        shape,
        spacing,
        labels,
        modality=draw(st.lists(st.sampled_from(["CT", "MRI", "US", ""]), min_size=1, max_size=4)),
        cases=draw(st.integers(2, 1000)),
        spread=draw(st.floats(1.0, 3.0)),
        zeros=draw(st.floats(0.0, 1.0)),
    )


budgets = st.builds(
    Resources,
    st.floats(60.0, 1e7),
    st.floats(1.0, 1000.0),
    st.builds(cost.Speed, st.floats(1e9, 1e15), st.floats(1e8, 1e15), st.floats(1e8, 1e13)),
    st.integers(2**30, 2**38),
)


def config_of(target, source, resources):
    config = auto.get_config("SOURCE,TARGET" if source else "TARGET")
    put(config, proposed(target, source, resources))
    return config


@examples(max_examples=30, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(fingerprints(), st.none() | fingerprints(), budgets)
def test_every_proposal_is_a_valid_config(target, source, resources):
    study = settings.parse(config_of(target, source, resources))
    check_networks(study)
    voxels = math.prod(study.target.patch)
    assert voxels <= math.prod(grid.LONGEST[study.model.ndim] * 1.3 for _ in study.target.patch)
    levels = grid.Levels(study.model.strides, study.model.kernels or ((3,) * study.model.ndim,) * 9)
    least = math.prod(max(grid.LEAST[study.model.ndim], n) for n in levels.divisors)
    size = study.train.batch * network.rough_bytes(study.model, study.target.patch, target.classes)
    assert size <= resources.memory_bytes / 2 or voxels <= 2 * least


@examples(max_examples=4, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(fingerprints(), st.none() | fingerprints())
def test_every_proposed_network_takes_its_patches(target, source):
    study = settings.parse(config_of(target, source, LAPTOP))
    patches = {study.target.patch: target} | ({study.source.patch: source} if source else {})
    for patch, task in patches.items():
        image = jax.ShapeDtypeStruct((study.train.batch, *patch, len(task.channels)), jnp.float32)
        model = make_model(study.model, classes=task.classes)
        logits, _ = jax.eval_shape(lambda key, x, model=model: model.init_with_output(key, x), jax.random.key(0), image)
        assert logits.shape == (*image.shape[:-1], task.classes)


# -------------------------------------------------------------------------------------------------------------- text


def test_a_proposal_reads_as_options_of_the_command_line():
    made = Proposal((Choice("target.spacing_mm", "1, 1, 0", "a reason"), Choice("train.steps", 50, "another")), ("n",))
    assert as_lines(made) == [
        "--config.target.spacing_mm='1, 1, 0'",
        "    a reason",
        "--config.train.steps=50",
        "    another",
        "",
        "note: n",
    ]
