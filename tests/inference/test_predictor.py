from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import lesionseg
from lesionseg.config import InferenceConfig
from lesionseg.core import Calibration, Geometry, OperatingPoint, Prediction, Volume
from lesionseg.errors import ConfigError, ContentError, DatasetError
from lesionseg.inference.bundle import Bundle, write_bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.window import choose_device
from lesionseg.io.volumes import write_volume
from lesionseg.models.build import build_network
from lesionseg.plan.plan import Plan
from tests.inference.networks import Bright

SHAPE = (22, 26, 30)
SPACING_MM = (1.0, 1.0, 1.0)
EXACT = InferenceConfig.of(precision="fp32")


CODES = ("SAR", "SAL", "SPL", "IPL", "RAS", "LPS", "PIR", "ASL", "RSA")


def _phantom(rng: np.random.Generator) -> NDArray[np.float32]:
    """A body of noise with three bright blobs, alike in no direction, in SAR order."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    image = rng.normal(100, 4, SHAPE)
    for centre, radius, height in (
        ((6, 8, 7), 3.2, 90),
        ((15, 18, 9), 4.4, 110),
        ((12, 9, 23), 2.4, 75),
    ):
        image += height * (((grid - centre) ** 2).sum(-1) < radius**2)
    return image.astype(np.float32)


def _stored(array: NDArray[np.float32], geometry: Geometry, code: str) -> Volume:
    """The same voxels in the same places, with array axes along `code` (slowest first)."""
    mm = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}
    axes = [{0: 2, 1: 1, 2: 0}[mm[letter][0]] for letter in code]  # source array axis
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    turned = array.transpose(axes)
    for i, (letter, axis) in enumerate(zip(code, axes, strict=True)):
        sign = mm[letter][1]
        matrix[axis, i] = sign
        if sign < 0:
            matrix[axis, 3] = array.shape[axis] - 1
            turned = np.flip(turned, i)
    return Volume(turned[None].copy(), Geometry(turned.shape, geometry.affine @ matrix))


def _read_at(prediction: Prediction, like: Geometry) -> NDArray[np.int32]:
    """A prediction's instances at the voxel centres of another grid."""
    assert prediction.instances is not None
    index = prediction.geometry.to_index(like.to_mm(np.argwhere(np.ones(like.shape))))
    index = np.rint(index).astype(int)
    inside = ((index >= 0) & (index < prediction.geometry.shape)).all(1)
    assert inside.all()
    return prediction.instances[tuple(index.T)].reshape(like.shape)


def _oblique(geometry: Geometry) -> Geometry:
    """The same grid in a head turned by 12 and 7 degrees."""
    a, b = np.deg2rad(12), np.deg2rad(7)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turn = np.eye(4)
    turn[:3, :3] = about_z @ about_x
    return Geometry(geometry.shape, turn @ geometry.affine)


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture
def image(rng: np.random.Generator) -> NDArray[np.float32]:
    return _phantom(rng)


@pytest.fixture
def volume(image: NDArray[np.float32]) -> Volume:
    return Volume(image[None], Geometry.from_spacing(SHAPE, SPACING_MM))


@pytest.mark.parametrize("name", ["threshold", "unet"])
@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (1.3, 0.9, 1.1)])
@pytest.mark.parametrize("oblique", [False, True])
def test_however_a_scan_is_stored_the_candidates_lie_in_the_same_place(
    volume: Volume, plan: Plan, name: str, spacing_mm: tuple[float, ...], oblique: bool
) -> None:
    # the random network's output is shifted so that part of the volume lies above the floor
    network = (
        Bright() if name == "threshold" else build_network(plan.with_(lesion_fraction=0.2), seed=3)
    )
    fits = replace(plan, spacing_mm=spacing_mm)
    predictor = Predictor.from_network(network, fits, settings=EXACT)
    expected = predictor.predict_volume(volume, "plain")
    assert expected.instances is not None
    assert len(expected.candidates) >= (3 if name == "threshold" else 1)
    grid = _oblique(volume.geometry) if oblique else volume.geometry
    for code in ("SAR", "LPS", "PIR") if oblique else CODES:
        stored = _stored(volume.array[0], grid, code)
        found = predictor.predict_volume(stored, code)
        np.testing.assert_allclose(found.geometry.affine, stored.geometry.affine, atol=1e-5)
        there = _read_at(found, grid)
        if spacing_mm == SPACING_MM:
            assert np.array_equal(there, expected.instances)
        assert _dice(there > 0, expected.instances > 0) >= 0.99
        for a, b in zip(found.candidates, expected.candidates, strict=True):
            places = grid.to_index([a.centre_mm]), volume.geometry.to_index([b.centre_mm])
            np.testing.assert_allclose(*places, atol=0.1)


def test_an_array_in_nibabels_order_gives_the_same_places(
    image: NDArray[np.float32], volume: Volume, plan: Plan
) -> None:
    predictor = Predictor.from_network(Bright(), plan)
    expected = predictor.predict_volume(volume, "a")
    other_way = volume.geometry.affine[:, [2, 1, 0, 3]]  # of (x, y, z) in place of (z, y, x)
    prediction = predictor(image.T, other_way)
    centres = [np.rint(c.centre_mm) for c in prediction.candidates]
    assert np.array_equal(centres, [np.rint(c.centre_mm) for c in expected.candidates])
    assert _dice(prediction.mask().T > 0, expected.mask() > 0) >= 0.99
    with pytest.raises(ConfigError):
        predictor(image)


def test_two_axes_work_alike(image: NDArray[np.float32], plan: Plan) -> None:
    flat = replace(plan, dims=2, modality="xray", tile_shape=(16, 16), spacing_mm=(0.5, 0.5))
    predictor = Predictor.from_network(Bright(), flat, settings=InferenceConfig.of(flips=True))
    grid = Geometry.from_spacing(image[12].shape, (0.5, 0.5))
    prediction = predictor.predict_volume(Volume(image[None, 12], grid), "x")
    assert prediction.mask().shape == image[12].shape
    assert all(c.volume_ml is None for c in prediction.candidates)


def test_probabilities_lie_on_the_files_grid(volume: Volume, plan: Plan) -> None:
    two = replace(plan, label_values=(1, 2), label_names=("a", "b"), spacing_mm=(2.0, 2.0, 2.0))
    found = Predictor.from_network(Bright(n_labels=2), two).probabilities(volume)
    assert (found.shape, found.dtype) == ((2, *SHAPE), np.float32)
    assert 0 <= found.min() <= found.max() <= 1


def test_the_operating_point_decides_what_is_accepted(volume: Volume, plan: Plan) -> None:
    fit = Calibration("platt", intercept=-2.0, slope=1.0)
    pointed = plan.with_(operating_points=(OperatingPoint("fp_per_case:1", 1.0),), calibration=fit)
    strict = Predictor.from_network(Bright(), pointed).predict_volume(volume, "a")
    assert strict.operating_point == pointed.operating_points[0]
    lenient = Predictor.from_network(Bright(), pointed, operating_point="score:0")
    accepted = lenient.predict_volume(volume, "a").candidates
    assert all(c.accepted for c in accepted)
    assert len(accepted) == len(strict.candidates)
    chances = [c.probability for c in accepted]
    assert chances == pytest.approx(fit.probability([c.score for c in accepted]).tolist())
    with pytest.raises(ConfigError):
        Predictor.from_network(Bright(), pointed, operating_point="fp_per_case:3")


def test_a_bundle_and_a_path_are_all_it_takes(volume: Volume, plan: Plan, tmp_path: Path) -> None:
    write_bundle(tmp_path / "run" / "bundle", build_network(plan), plan, "")
    write_volume(tmp_path / "scan_0000.nii.gz", volume)
    prediction = lesionseg.Predictor(tmp_path / "run")(tmp_path / "scan_0000.nii.gz")
    assert prediction.case == "scan"
    assert prediction.geometry.matches(volume.geometry)


@pytest.mark.parametrize(("trained_at", "taken"), [(0.1, 0.1), (None, 0.2)])
def test_rasters_without_a_pixel_size_have_that_of_the_training(
    rng: np.random.Generator, plan: Plan, tmp_path: Path, trained_at: float | None, taken: float
) -> None:
    flat = replace(plan, dims=2, modality="xray", tile_shape=(16, 16), spacing_mm=(0.2, 0.2))
    flat = replace(flat, raster_mm=trained_at)
    image = rng.integers(0, 255, (1, 40, 30)).astype(np.uint8)
    write_volume(tmp_path / "x.png", Volume(image, Geometry.from_spacing((40, 30), (1, 1))))
    predictor = Predictor.from_network(Bright(), flat)
    assert predictor(tmp_path / "x.png").geometry.spacing_mm == (taken, taken)


def test_several_channels_come_as_several_files(volume: Volume, plan: Plan, tmp_path: Path) -> None:
    two = replace(plan, channel_names=("T1", "FLAIR"), normalisation=plan.normalisation * 2)
    paths = [tmp_path / "a_0000.nii", tmp_path / "a_0001.nii"]
    for path in paths:
        write_volume(path, volume)
    predictor = Predictor.from_network(Bright(), two)
    assert predictor(paths).case == "a"
    for wrong in (paths[0], []):
        with pytest.raises(DatasetError):
            predictor(wrong)


def test_voxels_are_put_right_by_the_plans_calibration(volume: Volume, plan: Plan) -> None:
    raw = Predictor.from_network(Bright(level=6.0), plan, settings=EXACT)
    fit = Calibration("platt", 3.0, 0.5)
    right = raw.with_plan(plan.with_(voxel_calibration=fit))
    p, q = raw.probabilities(volume), right.probabilities(volume)
    some = p > 1e-5
    np.testing.assert_allclose(q[some], fit.probability(p[some]), atol=1e-5)
    assert (q[p == 0] == 0).all()
    assert (raw.probabilities(volume) == p).all()  # the first one follows its own plan


@pytest.mark.parametrize(
    "image",
    [
        np.where(np.arange(9) == 4, np.nan, np.zeros((1, 9, 9, 9))),
        np.where(np.arange(9) == 4, np.inf, np.zeros((1, 9, 9, 9))),
        np.zeros((2, 9, 9, 9)),
        np.zeros((1, 9, 9)),
    ],
    ids=["NaN", "infinity", "two channels", "two axes"],
)
def test_refuses_what_is_no_scan_of_the_plan(plan: Plan, image: NDArray[np.float64]) -> None:
    shape = image.shape[1:]
    volume = Volume(image.astype(np.float32), Geometry.from_spacing(shape, (1.0,) * len(shape)))
    with pytest.raises(ContentError):
        Predictor.from_network(Bright(), plan).predict_volume(volume, "case-7")


def test_a_constant_volume_has_no_candidates(plan: Plan) -> None:
    volume = Volume(np.full((1, 4, 5, 6), 7, np.int16), Geometry.from_spacing((4, 5, 6), (1, 1, 1)))
    prediction = Predictor.from_network(Bright(), plan).predict_volume(volume, "tiny")
    assert prediction.candidates == ()
    assert not prediction.mask().any()


def test_an_unknown_device_is_refused() -> None:
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigError):
        choose_device("warp")


def test_an_ensemble_averages_the_probabilities_of_its_members(volume: Volume, plan: Plan) -> None:
    members = (Bright(0.0, 1.0), Bright(1.0, 3.0))
    alone = [Predictor.from_network(m, plan).probabilities(volume) for m in members]
    both = Predictor(Bundle(members, plan)).probabilities(volume)
    assert np.allclose(both, (alone[0] + alone[1]) / 2, atol=3e-4)  # kept as float16
