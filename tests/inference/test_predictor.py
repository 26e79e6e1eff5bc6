"""The predictor: orientation of scans, channels, calibration, ensembles, and empty images."""

from dataclasses import replace
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

from lesionseg.config import InferenceConfig
from lesionseg.core import (
    NO_SELECTION,
    Calibration,
    CaseFiles,
    Geometry,
    Labels,
    OperatingPoint,
    Selection,
    Volume,
)
from lesionseg.errors import ConfigError, ContentError, DatasetError, OutputError, ReadError
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.scan_prediction import ScanPrediction
from lesionseg.inference.window import choose_device
from lesionseg.io.results.index import find_predictions
from lesionseg.io.volumes import write_volume
from lesionseg.models.build import build_network
from lesionseg.plan.plan import AnchorPlan
from tests.grids import unit_grid
from tests.inference.networks import Bright
from tests.io.dicom_files import DX, write_dicom_file
from tests.models.plans import plan_of

SHAPE = (22, 26, 30)
SPACING_MM = (1.0, 1.0, 1.0)
EXACT = InferenceConfig.of(precision="fp32")
CODES = ("SAR", "SAL", "SPL", "IPL", "RAS", "LPS", "PIR", "ASL", "RSA")
TURN = np.eye(4)  # an oblique rotation
TURN[:3, :3] = Rotation.from_euler("xz", (7, 12), degrees=True).as_matrix()
BLOBS = (((6, 8, 7), 3.2, 90), ((15, 18, 9), 4.4, 110), ((12, 9, 23), 2.4, 75))


def predictor_of(network, plan, selection=NO_SELECTION, **settings):
    """Return the predictor for a network in memory."""
    return Predictor(Bundle((network,), plan, selection=selection), trust=True, **settings)


@pytest.fixture
def image(rng):
    """Return noise with three bright blobs in SAR order. No flip or turn leaves it unchanged."""
    image = rng.normal(100, 4, SHAPE)
    places = np.moveaxis(np.indices(SHAPE), 0, -1)
    for centre, radius, height in BLOBS:
        image[np.linalg.norm(places - centre, axis=-1) < radius] += height
    return image.astype(np.float32)


@pytest.fixture
def volume(image):
    return Volume(image[None], Geometry.from_spacing(SHAPE, SPACING_MM))


def reorient(array, geometry, code):
    """Store the same voxels at the same positions, with array axes along `code` (slowest first)."""
    image = nib.Nifti1Image(array, geometry.affine)
    transform = ornt_transform(io_orientation(image.affine), axcodes2ornt(code))
    turned = image.as_reoriented(transform)
    return Volume(np.array(turned.dataobj)[None], Geometry(turned.shape, turned.affine))


def read_instances(prediction, like):
    """Return a prediction's instances at the voxel centres of another grid."""
    index = prediction.geometry.to_index(like.to_mm(np.argwhere(np.ones(like.shape))))
    index = np.rint(index).astype(int)
    assert ((index >= 0) & (index < prediction.geometry.shape)).all()
    return prediction.instances[tuple(index.T)].reshape(like.shape)


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("name", ["threshold", "unet"])
@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (1.3, 0.9, 1.1)])
@pytest.mark.parametrize("oblique", [False, True])
def test_scan_gives_the_same_candidates_in_every_orientation(
    volume, plan, name, spacing_mm, oblique
):
    # lesion_fraction shifts the random network's output so that some voxels exceed the floor
    network = Bright()
    if name == "unet":
        network = build_network(plan.with_(lesion_fraction=0.2), seed=3)
    predictor = predictor_of(network, replace(plan, spacing_mm=spacing_mm), settings=EXACT)
    expected = predictor.predict_volume(volume, "plain")
    assert len(expected.candidates) >= (3 if name == "threshold" else 1)
    grid = Geometry(SHAPE, TURN @ volume.geometry.affine) if oblique else volume.geometry
    for code in ("SAR", "LPS", "PIR") if oblique else CODES:
        turned = reorient(volume.array[0], grid, code)
        found = predictor.predict_volume(turned, code)
        np.testing.assert_allclose(found.geometry.affine, turned.geometry.affine, atol=1e-5)
        instances = read_instances(found, grid)
        if spacing_mm == SPACING_MM:
            assert np.array_equal(instances, expected.instances)
        assert dice(instances > 0, expected.instances > 0) >= 0.99
        for a, b in zip(found.candidates, expected.candidates, strict=True):
            centre = grid.to_index([a.centre_mm])
            expected_centre = volume.geometry.to_index([b.centre_mm])
            np.testing.assert_allclose(centre, expected_centre, atol=0.1)


def test_array_in_the_axis_order_of_nibabel_gives_the_same_candidates(image, volume, plan):
    predictor = predictor_of(Bright(), plan)
    expected = predictor.predict_volume(volume, "a")
    affine = volume.geometry.affine[:, [2, 1, 0, 3]]  # for (x, y, z) instead of (z, y, x)
    found = predictor(image.T, affine)
    centres = [np.rint([c.centre_mm for c in p.candidates]) for p in (found, expected)]
    assert np.array_equal(*centres)
    assert dice(found.mask().T > 0, expected.mask() > 0) >= 0.99
    with pytest.raises(ConfigError):
        predictor(image)


def test_operating_point_decides_which_candidates_are_accepted(volume, plan):
    fit = Calibration(intercept=-2.0, slope=1.0)
    selection = Selection((OperatingPoint("fp_per_case:1", 1.0),), calibration=fit)
    strict = predictor_of(Bright(), plan, selection=selection)
    lenient = predictor_of(Bright(), plan, selection=selection, operating_point="score:0")
    found = strict.predict_volume(volume, "a")
    assert found.operating_point == selection.point
    accepted = lenient.predict_volume(volume, "a").candidates
    assert len(accepted) == len(found.candidates)
    assert all(c.accepted for c in accepted)
    chances = fit.probability([c.score for c in accepted])
    assert [c.probability for c in accepted] == pytest.approx(chances.tolist())
    with pytest.raises(ConfigError):
        predictor_of(Bright(), plan, selection=selection, operating_point="fp_per_case:3")


@pytest.mark.parametrize("chosen", [True, False, None])
@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("given", ["", "score:0.3"])  # a given score does not depend on any view
def test_warning_if_the_operating_point_was_chosen_on_other_views(
    plan, caplog, chosen, flips, given
):
    point = OperatingPoint("fp_per_case:1", 0.4, chosen_on="validation")
    predictor = predictor_of(
        Bright(),
        plan,
        selection=Selection((point,), is_mirrored=chosen),
        settings=InferenceConfig.of(flips=flips),
        operating_point=given or None,
    )
    assert predictor.is_mirrored == flips
    is_other = not given and chosen not in (None, flips)
    assert (f"inference.flips={str(chosen).lower()}" in caplog.text) == is_other


@pytest.mark.parametrize(
    ("name", "trained_at", "given", "taken"),
    [
        ("x.png", 0.1, None, 0.1),
        ("x.png", None, None, 0.2),
        ("x.dcm", 0.1, None, 0.1),
        ("x.dcm", 0.1, 0.3, 0.3),
    ],
)
def test_radiograph_without_a_pixel_size_gets_that_of_the_training(
    rng, plan, tmp_path, name, trained_at, given, taken
):
    image = rng.integers(0, 255, (40, 30)).astype(np.uint16)
    if name == "x.dcm":
        write_dicom_file(tmp_path / name, image, DX, Modality="DX")
    else:
        write_volume(tmp_path / name, Volume(image[None].astype(np.uint8), unit_grid(*image.shape)))
    flat = replace(plan, dims=2, modality="xray", tile_shape=(16, 16), spacing_mm=(0.2, 0.2))
    flat = replace(flat, raster_mm=trained_at)
    predictor = predictor_of(Bright(), flat, pixel_mm=given)
    listed = CaseFiles("x", (tmp_path / name,), columns={"pixel_mm": ""})  # an empty cell
    assert predictor.read(listed).geometry.spacing_mm == pytest.approx((taken, taken))
    found = predictor(tmp_path / name)
    assert found.geometry.spacing_mm == pytest.approx((taken, taken))
    assert found.mask().shape == (40, 30)
    assert {c.volume_ml for c in found.candidates} == {None}


def test_channels_are_read_from_one_file_each(volume, plan, tmp_path):
    two = replace(plan, channel_names=("T1", "FLAIR"), normalisation=plan.normalisation * 2)
    paths = [tmp_path / "a_0000.nii", tmp_path / "a_0001.nii"]
    for path in paths:
        write_volume(path, volume)
    predictor = predictor_of(Bright(), two)
    assert predictor(paths).case == "a"
    for wrong in (paths[0], []):
        with pytest.raises(DatasetError):
            predictor(wrong)


def test_voxel_probabilities_are_calibrated(volume, plan):
    plan = replace(plan, labels=Labels((1, 2), ("a", "b")), spacing_mm=(2.0, 2.0, 2.0))
    raw = predictor_of(Bright(level=6.0, n_labels=2), plan, settings=EXACT)
    fit = Calibration(3.0, 0.5)
    calibrated = raw.with_selection(Selection(voxel_calibration=fit))
    p = raw.probabilities(volume)
    q = calibrated.probabilities(volume)
    assert (p.shape, p.dtype) == ((2, *SHAPE), np.float32)  # on the file's grid
    some = p > 1e-5
    np.testing.assert_allclose(q[some], fit.probability(p[some]), atol=1e-5)
    assert (q[p == 0] == 0).all()
    assert (raw.probabilities(volume) == p).all()  # the first one keeps its own selection


def _oblique_and_scaled(image):
    affine = TURN @ np.diag([-0.9, 1.1, 1.3, 1.0])
    scan = nib.Nifti1Image(image.T.astype(np.int16), affine)
    scan.header.set_slope_inter(0.5, 3)
    return scan


def _in_metres_with_a_time_axis(image):
    scan = nib.Nifti2Image(image.T[..., np.newaxis], np.diag([0.001, 0.001, 0.001, 1.0]))
    scan.header.set_xyzt_units("meter")
    return scan


@pytest.mark.parametrize("make", [_oblique_and_scaled, _in_metres_with_a_time_axis])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_image_of_nibabel_gives_the_prediction_of_its_file(image, plan, tmp_path, make, is_loaded):
    path = tmp_path / "P1_0000.nii.gz"
    scan = make(image)
    nib.save(scan, path)
    predictor = predictor_of(Bright(), plan)
    expected = predictor(path)
    found = predictor(nib.load(path) if is_loaded else scan)
    assert expected.candidates
    assert found.case == "P1"
    assert found.geometry.matches(expected.geometry)
    assert np.array_equal(found.mask(), expected.mask())
    for one, other in zip(found.candidates, expected.candidates, strict=True):
        assert (one.id, one.accepted, one.start_vox) == (other.id, other.accepted, other.start_vox)
        assert one.score == pytest.approx(other.score, abs=1e-6)


def test_image_of_another_format_of_nibabel_is_predicted(image, plan):
    predictor = predictor_of(Bright(), plan)
    scan = image.T.astype(np.float32)
    mgh, nifti = (predictor(make(scan, np.eye(4))) for make in (nib.MGHImage, nib.Nifti1Image))
    assert np.array_equal(mgh.mask(), nifti.mask())
    assert mgh.case == "array"
    four_axes = np.zeros((4, 5, 6, 2), np.float32)
    for array, words in ((four_axes, "axes"), (np.zeros((4, 5, 6), np.complex64), "numbers")):
        with pytest.raises(ReadError, match=words):
            predictor(nib.Nifti1Image(array, np.eye(4)))


@pytest.mark.parametrize("given", [5, None, [5], {1: "a"}, b"ab", [np.zeros((3, 3))], [None]])
def test_scan_of_another_type_is_explained(plan, given):
    with pytest.raises(ConfigError, match=r"^image: "):
        predictor_of(Bright(), plan)(given)


@pytest.mark.parametrize("given", [5, None, [5], Bright(), [Bright()], b"ab"])
def test_bundle_of_another_type_is_explained(given):
    with pytest.raises(ConfigError, match=r"^bundle: "):
        Predictor(given)


@pytest.mark.parametrize("shape", [(20,), (20, 20), (1, 1, 9, 9, 9), (0, 5, 5), (2, 9, 9, 9)])
def test_array_with_other_axes_channels_or_no_voxels_is_an_error(plan, shape):
    with pytest.raises(ContentError):
        predictor_of(Bright(), plan)(np.zeros(shape, np.float32), np.eye(4))


def test_unknown_device_is_an_error(monkeypatch):
    with pytest.raises(ConfigError):
        choose_device("warp")
    without_cuda = Mock(side_effect=AssertionError("Torch not compiled with CUDA enabled"))
    monkeypatch.setattr("torch.empty", without_cuda)
    with pytest.raises(ConfigError, match=r"device=cuda: .*docs/install\.md"):
        choose_device("cuda")


def test_nan_of_a_scan_is_background_if_the_plan_states_it(volume, plan, tmp_path):
    nan, zeros = (replace(volume, array=volume.array.copy()) for _ in range(2))
    nan.array[:, :3] = np.nan
    zeros.array[:, :3] = 0
    expected = predictor_of(Bright(), plan).predict_volume(zeros, "a")
    assert expected.candidates
    write_volume(tmp_path / "a.nii.gz", nan)
    files = CaseFiles("a", (tmp_path / "a.nii.gz",))
    strict = predictor_of(Bright(), plan)
    for step in (lambda: strict.read(files), lambda: strict.predict_volume(nan, "a")):
        with pytest.raises(ContentError, match="NaN"):
            step()
    tolerant = predictor_of(Bright(), plan.with_(nan_background=True))
    for scan in (nan, tolerant.read(files)):
        assert tolerant.predict_volume(scan, "a").candidates == expected.candidates
    assert np.isnan(nan.array).any()  # the caller's array is not changed


@pytest.mark.parametrize("level", [0, 100])
def test_image_of_equal_voxels_has_no_candidates(plan, level):
    """Predict with a network and a calibration that give every voxel a high probability."""
    selection = Selection(voxel_calibration=Calibration(intercept=20.0))
    predictor = predictor_of(Bright(level=-100.0), plan, selection=selection, settings=EXACT)
    image = np.full(SHAPE, level, np.float32)
    blank = predictor(image, np.eye(4))
    assert blank.candidates == ()
    assert not blank.instances.any()
    assert blank.input.blank == ("T1",)
    image[3, 4:9] += 50
    image[8] -= 20
    assert predictor(image, np.eye(4)).candidates


def test_detector_has_no_box_of_equal_voxels_and_no_probabilities(rng):
    anchors = AnchorPlan(stages=(1, 2), sizes=(((3.0, 3.0),), ((8.0, 8.0),)), width=8, depth=1)
    plan = plan_of("retinanet", anchors=anchors, table={"n_supervised": 2})
    rule = replace(plan.candidate_rule, source="detection")
    predictor = predictor_of(build_network(plan), plan.with_(candidate_rule=rule), settings=EXACT)
    prediction = predictor(np.full((32, 32), 7, np.float32), np.eye(3))
    assert (prediction.candidates, prediction.input.blank) == ((), ("channel 0",))
    image = rng.normal(0, 1, (1, 32, 20)).astype(np.float32)
    found = predictor.probabilities(Volume(image, unit_grid(32, 20)))
    assert (found.shape, found.dtype) == ((0, 32, 20), np.float32)


@pytest.mark.parametrize(
    "name",
    [
        "out",
        "out/found.nii.gz",
        "out/P1_mask.nii",
        "out/sub-1_label-lesion_mask.nii",
        "out/sub-1_space-orig_label-lesion_desc-FLAIR_mask.nii",
    ],
)
def test_saved_mask_has_the_axes_of_the_file_of_the_scan(image, plan, tmp_path, name):
    scan = nib.Nifti1Image(image.T, np.diag([-1.0, 1.0, 1.0, 1.0]))
    nib.save(scan, tmp_path / "P1_0000.nii.gz")
    prediction = predictor_of(Bright(), plan)(tmp_path / "P1_0000.nii.gz")
    prediction.save(tmp_path / name)
    saved = nib.load(tmp_path / "out/P1_mask.nii.gz" if name == "out" else tmp_path / name)
    assert np.array_equal(saved.affine, scan.affine)
    mask = np.asarray(saved.dataobj) > 0
    assert dice(mask, image.T > 150) > 0.9
    assert np.array_equal(mask, prediction.mask().T > 0)
    (found,) = (f.read() for f in find_predictions(tmp_path / "out").values())
    assert [c.score for c in found.candidates] == [c.score for c in prediction.candidates]


def test_mask_of_a_picture_is_saved_only_as_png(tmp_path):
    prediction = ScanPrediction("P1", unit_grid(8, 9), (), np.zeros((8, 9), np.int32))
    with pytest.raises(OutputError, match="PNG"):
        prediction.save(tmp_path / "a.tif")
    prediction.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_warnings_of_a_scan_are_logged_and_returned(volume, plan, caplog):
    predictor = predictor_of(Bright(), plan)
    (warning,) = predictor(0 * volume.array[0], volume.geometry.affine).warnings
    assert "T1 is empty" in warning
    assert warning in caplog.text
    assert predictor(volume.array[0], volume.geometry.affine).warnings == ()
