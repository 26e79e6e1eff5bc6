"""Check of scans against the training scans: grid, intensities, polarity, and channels."""

from types import SimpleNamespace

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import DatasetError, GeometryError
from lesionseg.inference.input_check import (
    InputCheck,
    PolarityFeatures,
    channels_without_contrast,
    check_extent,
    check_missing,
    coarse_picture,
    compare_scan,
    grid_statistics,
    image_statistics,
    make_input_check,
    polarity_features,
    training_ranges,
)
from lesionseg.plan.plan import Plan
from tests.grids import unit_grid

SHAPE = (20, 24, 28)
GRID = unit_grid(*SHAPE)


def make_scan(seed):
    """Make a scan `[1, z, y, x]` of noise."""
    return np.random.default_rng(seed).normal(size=(1, *SHAPE)).astype(np.float32)


def make_check(n, scan=make_scan, name="T1"):
    """Make the check of n training scans, as a bundle stores it."""
    scans = [scan(seed) for seed in range(n)]
    check = make_input_check(
        [grid_statistics(s.shape[1:], (1.0,) * (s.ndim - 1)) for s in scans],
        [image_statistics(s, (name,)) for s in scans],
        [polarity_features(s, (name,)) for s in scans],
    )
    return check and InputCheck.model_validate_json(check.model_dump_json())


def compare(image, plan, check=None, missing=(), **more):
    return compare_scan(check, image, GRID, plan, missing, **more)


@pytest.fixture(scope="module")
def check():
    return make_check(6)


@pytest.fixture
def two(plan):
    """Return a plan of two channels."""
    return plan.with_(channel_names=("T1", "earlier"), normalisation=plan.normalisation * 2)


@pytest.mark.parametrize(
    ("image", "spacing_mm", "name"),
    [
        (make_scan(9), (1.0, 1.0, 1.0), ""),
        (make_scan(9) + 1, (1.0, 1.0, 1.0), "percentile of T1"),
        (make_scan(9).cumsum(1), (1.0, 1.0, 1.0), "T1"),
        (make_scan(9), (5.0, 1.0, 1.0), "along S"),
    ],
)
def test_warning_names_the_difference_from_the_training_scans(check, plan, image, spacing_mm, name):
    result = compare_scan(check, image, Geometry.from_spacing(SHAPE, spacing_mm), plan, ())
    assert (result.score > 1) == bool(name) == bool(result.warning)
    assert name in result.warning


def test_few_training_scans_give_no_check():
    assert make_check(4) is None


def test_empty_and_missing_channels_are_named_without_a_check(plan, two):
    assert "T1 is empty" in compare(np.zeros((1, *SHAPE)), plan).warning
    result = compare(make_channels(0), two, missing=(1,))
    assert result.missing == ("earlier",)
    assert "earlier" in result.warning
    assert "empty" not in result.warning


def make_channels(seed):
    """Make a scan of noise with a second, empty channel."""
    return np.concatenate([make_scan(seed), np.zeros((1, *SHAPE), np.float32)])


def test_channel_that_is_empty_in_training_scans_may_be_empty(two):
    """A mask of earlier lesions, for example, is empty for most patients."""
    cases = [SimpleNamespace(image=make_channels(seed), missing=()) for seed in range(6)]
    found = SimpleNamespace(shapes=[SHAPE] * 6, spacings_mm=[(1.0, 1.0, 1.0)] * 6)
    check = training_ranges(cases, two, found)
    assert check.sparse_channels == ("earlier",)
    result = compare(make_channels(0), two, check, blank=("earlier",))
    assert (result.blank, result.warning) == ((), "")
    assert compare(make_channels(0), two, check, blank=("T1",)).blank == ("T1",)


def test_one_of_several_channels_may_be_empty_without_a_check_but_not_all(two):
    """The training scans are unknown, and a mask of earlier lesions is empty for most patients."""
    image = make_channels(0)
    result = compare(image, two, blank=("earlier",))
    assert (result.blank, result.empty, result.is_warned) == ((), ("earlier",), True)
    assert "earlier is empty" in result.warning
    assert "Nothing was detected" not in result.warning
    both = compare(0 * image, two)
    assert (both.blank, both.empty) == (("T1", "earlier"), ())
    assert "Nothing was detected" in both.warning
    assert compare(0 * image, two, missing=(1,)).blank == ("T1",)


def test_scan_may_lack_one_channel_if_the_plan_allows_it(plan):
    plan = plan.with_(
        channel_names=("C0", "C1", "C2"), normalisation=plan.normalisation * 3, may_lack=True
    )
    assert Plan.from_json(plan.to_json()) == plan
    for missing in ((), (0,), (2,)):
        check_missing(plan, missing)
    with pytest.raises(DatasetError, match="no C0, C2"):
        check_missing(plan, (0, 2))
    with pytest.raises(DatasetError, match="no C1"):
        check_missing(plan.with_(may_lack=False), (1,))


def make_film(seed, *, is_negative=False):
    """Draw a film `[1, y, x]` in its own range, with dark lungs between bright sides."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :64] / 60
    lungs = sum(np.exp(-(((x - at) / 0.15) ** 2) - ((y - 0.5) / 0.3) ** 2) for at in (0.3, 0.75))
    values = rng.uniform(0.5, 1) - rng.uniform(0.3, 0.6) * lungs + 0.1 * rng.normal(size=y.shape)
    values = (values - values.mean()) / values.std()
    return (-values if is_negative else values)[np.newaxis].astype(np.float32)


@pytest.mark.parametrize("n", [5, 20])
def test_warning_names_a_photographic_negative(n):
    check = make_check(n, make_film, "film")
    for seed in range(100, 120):
        for is_negative in (False, True):
            image = make_film(seed, is_negative=is_negative)
            pictures = polarity_features(image, ("film",))
            score, warning = check.compare(image_statistics(image, ("film",)), pictures)
            assert (score > 1) == bool(warning) == is_negative
            assert ("film looks like a photographic negative" in warning) == is_negative


def turn(own):
    """Return the features of the negative."""
    return PolarityFeatures(-own.skew, -own.border, -own.picture)


def test_scans_without_a_polarity_give_no_warning(check):
    noise = make_check(20)
    for seed in range(20, 40):
        own = polarity_features(make_scan(seed), ("T1",))["T1"]
        assert noise.compare({}, {"T1": turn(own)})[1] == ""
    assert make_check(6, lambda _: np.zeros((1, *SHAPE), np.float32)).polarities == {}
    earlier = InputCheck.model_validate({"medians": check.medians, "tolerances": check.tolerances})
    assert earlier.compare({}, polarity_features(make_film(0), ("film",))) == (None, "")


def test_features_of_training_scans_agree_with_1_and_of_their_negatives_with_minus_1():
    features = [polarity_features(make_film(seed), ("film",))["film"] for seed in range(20)]
    polarity = make_check(20, make_film, "film").polarities["film"]
    similarities = [polarity.similarity(own) for own in features]
    assert np.mean(similarities) == pytest.approx(1, abs=0.05)
    assert [-polarity.similarity(turn(own)) for own in features] == pytest.approx(similarities)
    assert polarity.lowest > 0 >= polarity.limit


def test_polarity_features_have_the_values_computed_by_hand():
    channel = np.zeros((24, 24))
    channel[2:-2, 2:-2] = 1  # the border is 2 wide: 24 / 12
    channel[10, 10] = 9
    own = polarity_features(channel[np.newaxis], ("film",))["film"]
    low, middle, high = np.percentile(channel, (1, 50, 99))
    assert own.skew == pytest.approx((low + high - 2 * middle) / (high - low))
    assert own.border == pytest.approx(np.tanh(-channel.mean() / channel.std()))
    turned = polarity_features(3 - 2 * channel[np.newaxis], ("film",))["film"]
    assert (turned.skew, turned.border) == pytest.approx((-own.skew, -own.border))
    np.testing.assert_allclose(turned.picture, -own.picture, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (5, 200), (2, 30, 30)])
def test_coarse_picture_is_normalised(rng, shape):
    channel = rng.normal(size=shape)
    picture = coarse_picture(channel)
    assert picture.shape == ((36,) if len(shape) == 2 else (64,))
    assert np.linalg.norm(picture) == pytest.approx(0 if channel.size == 1 else 1)
    assert not coarse_picture(np.full(shape, 4.0)).any()


def test_coarse_picture_consists_of_block_means():
    channel = np.kron(np.arange(36).reshape(6, 6), np.ones((3, 5)))
    expected = np.arange(36) - 17.5
    np.testing.assert_allclose(
        coarse_picture(channel), expected / np.linalg.norm(expected), atol=1e-12
    )


BRIGHT_VOXEL = np.zeros((1, *SHAPE), np.float32)
BRIGHT_VOXEL[0, 5, 5, 5] = 1e6
SMALL_HEAD = np.pad(make_scan(0)[:, 8:12, 8:12, 8:12], [(0, 0), (8, 8), (8, 12), (8, 16)])


@pytest.mark.parametrize(
    ("image", "is_blank"),
    [
        (np.zeros((1, *SHAPE), np.float32), True),
        (np.full((1, *SHAPE), 100.1, np.float32), True),
        (np.full((1, *SHAPE), -1024, np.int16), True),
        (1e-4 * make_scan(0) + np.float32(100.1), True),  # a constant that was scaled
        (BRIGHT_VOXEL, True),
        (make_scan(0), False),
        (make_scan(0) * 1e-30, False),
        (make_scan(0) + 1000, False),
        (SMALL_HEAD, False),
    ],
)
def test_channel_without_contrast_is_found(image, is_blank):
    assert channels_without_contrast(Volume(image, GRID), ("T1",)) == (("T1",) if is_blank else ())


def test_blank_channel_is_named_but_a_missing_channel_is_not():
    volume = Volume(0 * make_channels(0), GRID, missing=(1,))
    assert channels_without_contrast(volume, ("T1", "T2")) == ("T1",)


def test_contrast_is_measured_only_on_valid_voxels():
    image = make_scan(0)
    image[:, 5:15] = 7
    valid = (image == 7)[0]
    assert channels_without_contrast(Volume(image, GRID, valid), ("T1",)) == ("T1",)
    assert channels_without_contrast(Volume(image, GRID), ("T1",)) == ()


@pytest.mark.parametrize(
    ("spacing_mm", "words"),
    [
        ((0.0015, 0.0015, 0.0015), "0.0015 × 0.0015 × 0.0015 mm"),
        ((0.001, 0.001, 0.001), "micrometres"),
        ((1.0, 1.0, 0.003), "1 × 1 × 0.003 mm"),
        ((300.0, 1.0, 1.0), "an extent of 6000"),
        ((1000.0, 1000.0, 1000.0), "metres for millimetres"),
    ],
)
def test_implausible_spacing_is_an_error(plan, spacing_mm, words):
    with pytest.raises(GeometryError, match=rf"scan\.nii.*{words}"):
        check_extent(Geometry.from_spacing(SHAPE, spacing_mm), plan, "scan.nii")


@pytest.mark.parametrize("spacing_mm", [(6.0, 0.3, 0.3), (0.05, 0.05, 0.05), (10.0, 10.0, 10.0)])
def test_unusual_spacing_is_no_error(plan, spacing_mm):
    check_extent(Geometry.from_spacing((8, 8, 3), spacing_mm), plan, "scan.nii")
