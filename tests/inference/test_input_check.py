"""Scans of one phantom with two channels, and the same scans corrupted one way at a time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from lesionseg.core import Geometry, InputVerdict, Volume
from lesionseg.errors import BundleError
from lesionseg.inference.bundles.bundle import bundle_digest, read_bundle, write_bundle
from lesionseg.inference.decision import NOT_CHECKED
from lesionseg.inference.input_check import (
    InputCheck,
    _limits,
    _reordered,
    judge_input,
    make_input_check,
)
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.scan_statistics import (
    entry_names,
    grid_vector,
    image_statistics,
    orientation,
    pooled_features,
    scan_statistics,
)
from lesionseg.inference.training_norms import Norm, limit_of
from lesionseg.models.build import build_network
from lesionseg.plan.plan import Architecture, ChannelSet, Normalisation, Plan
from tests.inference.networks import Bright

SHAPE = (20, 24, 28)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(
        dims=3,
        modality="mri",
        channel_names=("FLAIR", "T1"),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=(1.0, 1.0, 1.0),
        normalisation=(Normalisation("zscore"), Normalisation("zscore")),
        tile_shape=(16, 16, 16),
        batch_size=2,
        architecture=Architecture("unet", (4, 8), ((1,) * 3, (2,) * 3), ((3,) * 3,) * 2, 1, 2),
        lesion_fraction=0.01,
    )


@pytest.fixture(scope="module")
def network(plan: Plan) -> nn.Module:
    return build_network(plan)


def _scan(seed: int) -> Volume:
    """A ball with a bright cap on one side; the second channel is its negative, blurred less."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    inside = sum(a**2 for a in axes) < rng.uniform(0.6, 0.7)
    cap = inside & (axes[0] > 0.2) & (axes[1] > 0.1)
    flair = 100 * inside + rng.uniform(55, 65) * cap
    t1 = 140 * inside - rng.uniform(70, 80) * cap
    noise = rng.normal(0, 4, (2, *SHAPE))
    array = np.abs(np.stack([flair, t1]) + noise).astype(np.float32)
    return Volume(array, Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0)))


def _check(network: nn.Module, plan: Plan, n: int = 12, patients: int = 12) -> InputCheck | None:
    opener = Predictor.from_network(network, plan).scans
    scans = [opener.prepare(_scan(seed), "scan") for seed in range(n)]
    taken = [scan_statistics(s.image.array, s.file_geometry, network, plan) for s in scans]
    grids = np.stack([grid_vector(SHAPE, (1.0, 1.0, 1.0))] * n)
    return make_input_check(taken, [str(i % patients) for i in range(n)], grids)


@pytest.fixture(scope="module")
def check(network: nn.Module, plan: Plan) -> InputCheck:
    made = _check(network, plan)
    assert made is not None
    return made


def _verdict(
    check: InputCheck | None, volume: Volume, network: nn.Module, plan: Plan
) -> InputVerdict:
    scan = Predictor.from_network(network, plan).scans.prepare(volume, "scan")
    return judge_input(check, scan.image, scan.file_geometry, network, plan)


def _half_zeroed(array: NDArray[np.float32]) -> NDArray[np.float32]:
    half = array.copy()
    half[:, :10] = 0
    return half


SPOILT: dict[str, tuple[Callable[[NDArray[np.float32]], NDArray[np.float32]], str]] = {
    "swapped": (lambda a: a[::-1].copy(), "The channels seem swapped: they look like T1, FLAIR."),
    "bent": (lambda a: (a / 200) ** 2 * 200, "sharpness|intensities"),
    "half zeroed": (
        _half_zeroed,
        "Empty parts: the share without detail of the first half of FLAIR along S is ",
    ),
    "cropped": (lambda a: a[:, 5:15, 6:18, 7:21].copy(), "Another grid: the extent along "),
    "turned": (lambda a: np.flip(a, (1, 2)).copy(), "Turned, mirrored"),
}


def test_scans_like_the_training_scans_are_not_warned_of(
    check: InputCheck, network: nn.Module, plan: Plan
) -> None:
    verdicts = [_verdict(check, _scan(seed), network, plan) for seed in range(100, 110)]
    assert sum(bool(v.warning) for v in verdicts) == 0
    assert all(v.score is not None and 0 < v.score <= 1 for v in verdicts)


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_unlike_is_said(
    name: str, check: InputCheck, network: nn.Module, plan: Plan
) -> None:
    spoil, expected = SPOILT[name]
    array = spoil(_scan(200).array)
    grid = Geometry.from_spacing(array.shape[1:], (1.0, 1.0, 1.0))
    verdict = _verdict(check, Volume(array, grid), network, plan)
    assert verdict.score is not None
    assert verdict.score > 1
    assert any(part in verdict.warning for part in expected.split("|")), verdict


def test_thick_slices_are_told_by_their_millimetres(
    check: InputCheck, network: nn.Module, plan: Plan
) -> None:
    array = _scan(3).array.reshape(2, 5, 4, *SHAPE[1:]).mean(2)
    thick = Volume(array, Geometry.from_spacing(array.shape[1:], (4.0, 1.0, 1.0)))
    warning = _verdict(check, thick, network, plan).warning
    assert "the spacing along S in mm is 4, in training 1 to 1 (also: " in warning


def test_the_grid_is_compared_with_the_files_and_not_with_the_plan(
    network: nn.Module, plan: Plan
) -> None:
    scans = [scan_statistics(_scan(i).array, _scan(i).geometry, network, plan) for i in range(8)]
    files = np.stack([grid_vector(SHAPE, (s, 1.0, 1.0)) for s in np.linspace(2, 5, 8)])
    check = make_input_check(scans, list("abcdefgh"), files)
    assert check is not None
    assert np.exp(check.norms["grid"].low[0]) == pytest.approx(2)
    assert np.exp(check.norms["grid"].high[0]) == pytest.approx(5)


def test_swapped_channels_within_all_limits_are_told_by_the_better_order(
    check: InputCheck, network: nn.Module, plan: Plan
) -> None:
    wide = {kind: replace(norm, limit=norm.limit * 50) for kind, norm in check.norms.items()}
    check = InputCheck(wide, check.template)
    scan = _scan(200)
    verdict = _verdict(check, replace(scan, array=scan.array[::-1].copy()), network, plan)
    assert verdict.warning == "The channels seem swapped: they look like T1, FLAIR."
    assert verdict.score is not None
    assert verdict.score > 1
    given = _verdict(check, scan, network, plan)
    assert given.warning == ""
    assert given.score is not None
    assert given.score < 1


def test_one_kind_with_odd_scans_leaves_the_other_limits(rng: np.random.Generator) -> None:
    usual, odd = np.exp(rng.normal(0, 0.2, (2, 60)))
    odd[[3, 30]], odd[50] = 100, 9
    limits = _limits({"sharpness": usual, "empty": odd})
    assert limits["sharpness"] == pytest.approx(limit_of(usual))
    assert limits["empty"] == pytest.approx(max(9, limit_of(odd)))


def test_a_channel_without_contrast_is_named_without_any_check(
    network: nn.Module, plan: Plan
) -> None:
    array = _scan(1).array
    array[1] = 7
    verdict = _verdict(None, Volume(array, _scan(1).geometry), network, plan)
    assert verdict == InputVerdict(None, "Channel T1 is empty: all its voxels are equal.")


def test_no_result_is_empty_without_a_word(plan: Plan) -> None:
    predictor = Predictor.from_network(Bright(level=99.0), plan)
    nothing = predictor.predict_volume(_scan(1), "a")
    assert (nothing.candidates, nothing.input) == ((), InputVerdict(None, NOT_CHECKED))
    found = Predictor.from_network(Bright(level=0.5), plan).predict_volume(_scan(1), "a")
    assert any(c.accepted for c in found.candidates)
    assert found.input == InputVerdict()


@pytest.mark.parametrize(("n", "patients"), [(4, 4), (8, 1)])
def test_too_few_scans_or_patients_make_no_check(
    n: int, patients: int, network: nn.Module, plan: Plan
) -> None:
    assert _check(network, plan, n, patients) is None


def test_a_bundle_keeps_the_check_and_no_scan(
    check: InputCheck, network: nn.Module, plan: Plan, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "bare", network, plan, "")
    write_bundle(tmp_path / "bundle", network, plan, "", check)
    assert read_bundle(tmp_path / "bare").check is None
    assert bundle_digest(tmp_path / "bare") != bundle_digest(tmp_path / "bundle")
    read = read_bundle(tmp_path / "bundle").check
    volume = _scan(200)
    before, after = (_verdict(c, volume, network, plan) for c in (check, read))
    assert after.score == pytest.approx(before.score, rel=1e-3)
    prediction = Predictor(tmp_path / "bundle").predict_volume(volume, "a")
    assert prediction.input == after


@pytest.mark.parametrize("fault", ["another plan", "infinite", "missing", "negative"])
def test_statistics_that_do_not_fit_are_refused(fault: str, check: InputCheck, plan: Plan) -> None:
    tensors = check.tensors()
    if fault == "another plan":
        plan = replace(plan, channel_names=("FLAIR",))
    elif fault == "infinite":
        tensors["grid.mean"] = torch.full_like(tensors["grid.mean"], torch.inf)
    elif fault == "missing":
        del tensors["intensity.low"]
    else:
        tensors["empty.scale"] = -tensors["empty.scale"]
    with pytest.raises(BundleError, match=r"do not fit the plan.*in here.*How to fix"):
        InputCheck.from_tensors(tensors, plan, "here")


def test_features_of_another_network_are_refused(
    check: InputCheck, network: nn.Module, plan: Plan
) -> None:
    wider = replace(plan, architecture=replace(plan.architecture, features=(4, 12)))
    with pytest.raises(BundleError, match="do not fit the network"):
        _verdict(check, _scan(1), build_network(wider), plan)


def test_a_network_without_our_encoder_is_compared_by_the_image_alone(plan: Plan) -> None:
    check = _check(Bright(), plan)
    assert check is not None
    assert "features" not in check.norms
    assert pooled_features(Bright(), _scan(1).array, plan) is None
    assert _verdict(check, _scan(100), Bright(), plan).warning == ""


def test_statistics_by_hand() -> None:
    ramp = np.broadcast_to(np.arange(10.0), (1, 6, 10)).astype(np.float32).copy()
    ramp[0, :3] = 0
    vectors, thumbnail = image_statistics(ramp)
    assert thumbnail.shape == (1, 8, 8)
    # the upper half equals its neighbours along the rows, but for the step to the lower one
    assert vectors["empty"][0] == 1.0
    assert vectors["empty"][1] == pytest.approx(0.0, abs=0.51)
    np.testing.assert_allclose(
        grid_vector((10, 20), (0.5, 2.0)), np.log([0.5, 2.0, 5.0, 40.0]), atol=1e-12
    )


def test_numbers_follow_their_channels_into_another_order() -> None:
    # two numbers per channel a, b, c; then the pairs ab, ac, bc
    vector = np.array([1.0, 2, 10, 20, 100, 200, 0.12, 0.13, 0.23])
    moved = _reordered(vector, (2, 0, 1), 3)
    assert moved.tolist() == [100, 200, 1, 2, 10, 20, 0.13, 0.23, 0.12]
    assert _reordered(vector[:6], (1, 0, 2), 0).tolist() == [10, 20, 1, 2, 100, 200]


def test_every_number_has_a_name(plan: Plan) -> None:
    vectors, _ = image_statistics(_scan(0).array)
    names = entry_names(plan)
    assert {k: len(v) for k, v in vectors.items()} == {k: len(names[k]) for k in vectors}


def test_a_turned_thumbnail_fits_better_turned(rng: np.random.Generator) -> None:
    template = rng.normal(size=(1, 8, 8, 8)).astype(np.float32)
    same, turned = orientation(template, template), orientation(template[:, ::-1], template)
    assert same[0] == pytest.approx(1, abs=1e-4)
    assert same[1] < -0.5
    assert turned[1] == pytest.approx(1 - turned[0], abs=1e-4)


@pytest.mark.parametrize("missing", [0, 1])
def test_of_a_missing_channel_nothing_is_said(
    missing: int, check: InputCheck, network: nn.Module, plan: Plan
) -> None:
    plan = plan.with_(channel_sets=(ChannelSet((missing,)),))
    for seed in range(100, 110):
        verdict = _verdict(check, _lacking(_scan(seed), missing), network, plan)
        assert (verdict.warning, verdict.missing) == ("", (plan.channel_names[missing],))
        assert verdict.score is not None
    spoilt = _half_zeroed(_scan(200).array)
    verdict = _verdict(check, _lacking(replace(_scan(200), array=spoilt), missing), network, plan)
    present = plan.channel_names[1 - missing]
    assert f"half of {present} along S" in verdict.warning
    flat = replace(_scan(1), array=np.zeros((2, *SHAPE), np.float32))
    verdict = _verdict(None, _lacking(flat, missing), network, plan)
    assert verdict.warning == f"Channel {present} is empty: all its voxels are equal."


def _lacking(scan: Volume, channel: int) -> Volume:
    array = scan.array.copy()
    array[channel] = 0
    return replace(scan, array=array, missing=(channel,))


def test_a_norm_of_some_entries_is_that_of_these_alone(rng: np.random.Generator) -> None:
    """Worked out: a covariance [[2, 1], [1, 2]] leaves 2 to either entry by itself."""
    precision = np.linalg.inv(np.array([[2.0, 1.0], [1.0, 2.0]]))
    ones, zeros = np.ones(2), np.zeros(2)
    alone = Norm(zeros, ones, precision, -ones, ones, 1.0).of([1])
    assert alone.precision.item() == pytest.approx(0.5)
    assert alone.distance(np.array([2.0])) == pytest.approx(np.sqrt(2))
