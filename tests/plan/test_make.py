"""A complete plan with reasons. It is repeatable and follows the user's overrides."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest

from lesionseg.config import ModelConfig
from lesionseg.core import Labels
from lesionseg.errors import ConfigError
from lesionseg.plan import Plan, make_plan
from lesionseg.plan.channel_matching import match_channels
from lesionseg.plan.make import check_compatible
from lesionseg.plan.plan import Architecture
from tests.plan.conftest import take_fingerprint


def step_gb(plan):
    """Return an invented memory of a training step."""
    return 3 + 34e-9 * plan.architecture.features[0] * plan.batch_size * prod(plan.tile_shape)


@pytest.fixture
def make(dataset, cases):
    """Return a function that plans for a toy dataset. `data` contains changes of the dataset."""
    taken = take_fingerprint(dataset, cases)
    large = replace(taken, shapes=((160, 190, 160),) * 3, spacings_mm=((1.0, 1.0, 1.0),) * 3)

    def plan_of(*, data=None, device="cpu", before=None, pyramid=None, **chosen):
        changed = replace(dataset, **(data or {}))
        channels = taken.channels[:1] * len(changed.channel_names)
        return make_plan(
            replace(large, channels=channels),
            changed,
            memory_gb=24,
            device=device,
            step_memory=step_gb,
            overrides=ModelConfig.of(**chosen),
            before=before,
            pyramid=pyramid,
        )

    return plan_of


@pytest.mark.parametrize(
    ("value", "name", "warned"),
    [(255, "liver", True), (1, "liver", False), (255, "rgb_to_0_1", False)],
)
def test_mask_that_a_z_score_does_not_scale_is_named(dataset, cases, caplog, value, name, warned):
    for case in cases:
        case.image.array[:] = np.where(case.image.array > 150, value, 0)
    named = replace(dataset, channel_names=(name,))
    statistics = take_fingerprint(named, cases)
    make_plan(statistics, named, memory_gb=24, device="cpu", step_memory=step_gb)
    assert ("'liver' has no values but 0 and 255" in caplog.text) == warned


def test_regions_are_channels_of_mask_values(make):
    labels = Labels((1, 9), ("whole", "core"), regions=((1, 4, 9), (4, 9)))
    plan = make(data={"labels": replace(labels, ignore=7)})
    assert plan.labels == labels
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(ConfigError, match="regions overlap"):
        make(data={"labels": labels}, activation="softmax")


@pytest.mark.parametrize(("device", "width", "depth"), [("cuda", 128, 4), ("cpu", 32, 1)])
def test_detector_has_large_heads_only_on_a_gpu(make, device, width, depth):
    anchors = make(device=device, architecture="retinanet").anchors
    assert (anchors.width, anchors.depth) == (width, depth)


def test_overrides_are_used_and_stated(make):
    plan = make(
        spacing_mm=[2, 1, 1],
        tile_shape=[32, 48, 48],
        batch_size=3,
        base_features=8,
        activation="softmax",
        architecture="mine",
    )
    assert (plan.spacing_mm, plan.tile_shape) == ((2.0, 1.0, 1.0), (32, 48, 48))
    assert (plan.batch_size, plan.activation) == (3, "softmax")
    assert plan.architecture.name == "mine"
    assert plan.architecture.features == (8, 16, 32, 64, 64)  # z, the coarse axis, halves last
    by_hand = [name for name, reason in plan.reasons.items() if reason == "set by the user"]
    assert by_hand == ["spacing_mm", "tile_shape", "batch_size"]


def test_plan_follows_the_plan_of_the_initial_weights(make):
    before = make(spacing_mm=(2.0, 1.0, 1.0), tile_shape=(32, 64, 64))
    after = make(device="cuda", before=before)
    for name in ("spacing_mm", "normalisation", "tile_shape", "architecture"):
        assert getattr(after, name) == getattr(before, name)
        assert "that training starts from" in after.reasons[name]
    changes = {"architecture": "retina_unet", "tile_shape": (64, 64, 64)}
    detector = make(device="cuda", before=before, **changes)
    assert detector.architecture == replace(before.architecture, name="retina_unet")
    assert detector.tile_shape == (64, 64, 64)
    assert detector.anchors is not None
    # a run of small tiles had many of them per step
    for side, batch in ((32, 16), (40, 4)):
        small = make(tile_shape=(side,) * 3, batch_size=16)
        assert make(before=small).batch_size == batch


def test_layout_of_nnunet_supervises_all_but_the_two_coarsest_stages(make):
    tile = (128, 128, 128)
    ours = make(layout=None, tile_shape=tile).architecture
    theirs = make(layout="nnunet", tile_shape=tile).architecture
    assert (len(ours.features), ours.n_supervised, theirs.n_supervised) == (6, 3, 4)
    assert replace(theirs, layout="lesionseg", n_supervised=3) == ours


def pyramid_of(stride):
    """Return the stages of a network that halves all axes until the stride is reached."""
    n = stride.bit_length()
    strides = ((1, 1, 1),) + ((2, 2, 2),) * (n - 1)
    return Architecture("unet", (32,) * n, strides, ((3, 3, 3),) * n, layout="nnunet")


# With 32 features, the rules plan a tile of 40³ voxels. A tile of 32³ is a single voxel in the
# coarsest stage of a network of stride 32.
@pytest.mark.parametrize(
    ("stride", "spacing_mm", "tile"),
    [
        (16, (1.0, 1.0, 1.0), (32, 32, 32)),
        (32, (1.0, 1.0, 1.0), (64, 32, 32)),
        (32, (1.1, 1.0, 1.1), (32, 64, 32)),
    ],
)
def test_tile_fits_the_stride_of_a_given_backbone(make, stride, spacing_mm, tile):
    plan = make(pyramid=pyramid_of(stride), spacing_mm=spacing_mm)
    assert plan.tile_shape == tile
    assert plan.reasons["tile_shape"].startswith(" × ".join(map(str, tile)))


@pytest.mark.parametrize("network", [{}, {"_target_": "package.Backbone"}])
@pytest.mark.parametrize(
    ("key", "same", "other"), [("base_features", 32, 8), ("layout", "nnunet", "lesionseg")]
)
def test_another_width_or_layout_than_that_of_given_stages_is_refused(
    make, network, key, same, other
):
    given = replace(pyramid_of(16), network=network)
    assert make(pyramid=given, **{key: same}).architecture == given
    source = "model.backbone" if network else "the checkpoint of model.init_from"
    with pytest.raises(ConfigError, match=f"model.{key}={other}: {source} has {same}"):
        make(pyramid=given, **{key: other})


def test_bundle_may_call_pictures_in_colour_xray(make, dataset, cases):
    before = make().with_(modality="xray")  # as in bundles of 1.0.0
    colour = replace(take_fingerprint(dataset, cases), modality="colour")
    check_compatible(before, ModelConfig.of(architecture="unet"), colour, dataset)


@pytest.mark.parametrize(("before_mm", "here_mm"), [(0.14, 1.0), (1.0, 0.14)])
def test_bundle_of_known_pixel_sizes_does_not_fit_images_of_unknown_ones(
    make, dataset, cases, before_mm, here_mm
):
    before = make().with_(dims=2, modality="xray", raster_mm=before_mm)
    found = replace(take_fingerprint(dataset, cases), dims=2, modality="xray")
    model = ModelConfig.of(architecture="unet")
    check_compatible(before, model, replace(found, spacings_mm=((before_mm,) * 2,)), dataset)
    with pytest.raises(ConfigError, match="state the size of a pixel"):
        check_compatible(before, model, replace(found, spacings_mm=((here_mm,) * 2,)), dataset)


def test_own_network_needs_the_same_channels_in_the_same_order(make, dataset, cases):
    spec = {"_target_": "package.Backbone"}
    model = ModelConfig.of(architecture="retinanet", backbone=spec)
    plan = make()
    before = plan.with_(architecture=replace(plan.architecture, network=spec))
    here = replace(dataset, channel_names=("a", "b"))
    found = take_fingerprint(dataset, cases)
    check_compatible(before.with_(channel_names=("a", "b")), model, found, here)
    with pytest.raises(ConfigError, match="channels b, a, but here they are a, b"):
        check_compatible(before.with_(channel_names=("b", "a")), model, found, here)


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ({"dims": 2}, {}, "number of axes of the bundle is 2, but here it is 3"),
        ({"modality": "ct"}, {}, "modality of the bundle is ct, but here it is mri"),
        ({}, {"architecture": "mine"}, "kind of backbone of the bundle"),
        ({}, {"spacing_mm": (3.0, 3.0, 3.0)}, r"model\.spacing_mm="),
        ({}, {"base_features": 99}, r"model\.base_features=99"),
        ({}, {"layout": "nnunet"}, r"model\.layout=nnunet"),
        ({}, {"tile_shape": (20, 20, 20)}, "multiples of"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(make, change, overrides, message):
    before = make().with_(**change)
    with pytest.raises(ConfigError, match=message):
        make(before=before, **overrides)


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        (r"model\.tile_shape", {"tile_shape": [64, 64]}),
        (r"model\.tile_shape", {"tile_shape": [63, 63, 63]}),
        (r"model\.spacing_mm", {"spacing_mm": [1.0, 1.0]}),
        # a tile of a single voxel in the coarsest stage
        ("one must be longer", {"pyramid": pyramid_of(32), "tile_shape": (32, 32, 32)}),
    ],
)
def test_setting_of_a_wrong_shape_is_refused(make, message, settings):
    with pytest.raises(ConfigError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("before", "here", "sources", "warned"),
    [
        (("T1", "FLAIR"), ("FLAIR", "T1"), (1, 0), False),
        (("T1", "FLAIR"), ("flair", "T2"), (1, None), True),
        (("T1", "FLAIR"), ("t1 ", "Flair"), (0, 1), False),
        (("T1", "FLAIR"), ("T1", "T2"), (0, 1), True),
        (("T1",), ("FLAIR", "T1"), (None, 0), True),
        (("a", "T1", "b"), ("FLAIR", "T1"), (None, 1), True),
    ],
)
def test_channels_match_by_name_otherwise_by_position(make, caplog, before, here, sources, warned):
    own = make(data={"channel_names": here})
    scales = tuple(replace(own.normalisation[0], mean=9.0 + i) for i in range(len(before)))
    given = own.with_(channel_names=before, normalisation=scales)
    plan = make(data={"channel_names": here}, before=given)
    followed = [own.normalisation[i] if s is None else scales[s] for i, s in enumerate(sources)]
    assert list(plan.normalisation) == followed
    assert match_channels(here, before) == sources
    assert (f"{', '.join(before)} in the bundle" in caplog.text) == warned
