import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, OperatingPoint, Volume
from lesionseg.errors import BundleError, ConfigError, DatasetError
from lesionseg.inference.bundles.bundle import write_bundle
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.io.atomic import read_csv
from lesionseg.io.predictions import find_predictions, read_prediction
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.pipeline.predict.predictions_table import PredictOutcome
from lesionseg.pipeline.predict.recipe import predict
from lesionseg.pipeline.predict.study_table import burden
from lesionseg.plan.plan import Plan
from tests.inference.networks import Bright

SHAPE = (12, 18, 20)
MINE = {"mine": lambda _: Bright()}


@pytest.fixture
def scans(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Three scans stored in three ways, two of them one level down."""
    folder = tmp_path / "scans with = and, [x]"
    for name, affine in {
        "a.nii.gz": np.array([[0, 0, -1, 9], [0, 1, 0, -4], [2, 0, 0, 3], [0, 0, 0, 1]]),
        "more/b.mha": np.array([[0, 1.0, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 5], [0, 0, 0, 1]]),
        "more/c.nii": np.array([[0.8, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 1.7, 0], [0, 0, 0, 1]]),
    }.items():
        write_volume(folder / name, Volume(_image(rng)[None], Geometry(SHAPE, affine)))
    return folder


def _image(rng: np.random.Generator) -> NDArray[np.float32]:
    image = rng.normal(100, 3, SHAPE)
    image[3:6, 4:8, 5:9] += 60
    image[8:11, 10:14, 12:17] += 80
    return image.astype(np.float32)


def _run(bundle: Path, source: Path | str, output: Path, **options: object) -> PredictOutcome:
    return predict(bundle, source, output, architectures=MINE, **options)  # type: ignore[arg-type]


def _table(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_scan_gets_its_files_in_its_own_format_and_geometry(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    rows = _run(bundle, scans, tmp_path / "out")
    assert rows.exit_status == 0
    assert [(r.case, r.status) for r in rows] == [("a", "done"), ("b", "done"), ("c", "done")]
    found = find_predictions(tmp_path / "out")
    for case, scan in {"a": "a.nii.gz", "b": "more/b.mha", "c": "more/c.nii"}.items():
        image = read_volume(scans / scan)
        files = found[case]
        assert files.mask is not None
        assert files.mask.name == f"{case}_mask{''.join(Path(scan).suffixes)}"
        mask = read_volume(files.mask)
        assert mask.geometry.shape == image.geometry.shape
        np.testing.assert_allclose(mask.geometry.affine, image.geometry.affine, atol=1e-5)
        assert mask.array[0, 4, 6, 7] == 1
        assert mask.array[0, 9, 12, 14] == 1
        prediction = read_prediction(files)
        assert len(prediction.candidates) >= 2
        assert prediction.scored


def test_masks_are_called_as_nnunet_calls_them(bundle: Path, scans: Path, tmp_path: Path) -> None:
    scan, out = scans / "a.nii.gz", tmp_path / "out"
    assert [row.status for row in _run(bundle, scan, out, names="nnunet")] == ["done"]
    assert {p.name for p in out.glob("*.nii.gz")} == {"a.nii.gz", "a_instances.nii.gz"}
    assert read_prediction(find_predictions(out)["a"]).mask().any()
    assert [row.status for row in _run(bundle, scan, out, names="nnunet")] == ["kept"]
    with pytest.raises(ConfigError, match="There is no such choice of names"):
        _run(bundle, scan, out, names="nnUNet")


def test_the_table_counts_candidates(bundle: Path, scans: Path, tmp_path: Path) -> None:
    rows = _run(bundle, scans / "a.nii.gz", tmp_path / "out", operating_point="score:0.99")
    (line,) = _table(tmp_path / "out")
    assert list(line)[:6] == [
        "case", "status", "message", "seconds", "n_candidates", "n_accepted",
    ]  # fmt: skip
    raw = json.loads((tmp_path / "out" / "a_candidates.json").read_text())
    assert int(line["n_candidates"]) == rows[0].n_candidates == len(raw["candidates"])
    accepted = [c for c in raw["candidates"] if c["accepted"]]
    assert int(line["n_accepted"]) == len(accepted) > 0
    assert all(c["score"] >= 0.99 for c in accepted)


def test_bad_files_do_not_stop_the_others(bundle: Path, scans: Path, tmp_path: Path) -> None:
    whole = (scans / "a.nii.gz").read_bytes()
    (scans / "aa.nii.gz").write_bytes(whole[: len(whole) // 2])
    (scans / "ab.nii.gz").write_bytes(b"")
    (scans / "ac.nii.gz").write_bytes(b"this is no image")
    bad = read_volume(scans / "a.nii.gz")
    bad.array[0, 1, 1, 1] = np.nan
    write_volume(scans / "ad.nii.gz", bad)
    flat = Volume(np.zeros((1, 9, 9), np.uint8), Geometry.from_spacing((9, 9), (1, 1)))
    write_volume(scans / "ae.png", flat)
    outcome = _run(bundle, scans, tmp_path / "out")
    rows = {row.case: row for row in outcome}
    assert outcome.exit_status == 1
    assert outcome.summary()[0].startswith("8 cases: 3 predicted, 0 kept from an earlier run, 5")
    assert len(outcome.summary()) == 6
    assert [c for c, r in rows.items() if r.status == "done"] == ["a", "b", "c"]
    for case in ("aa", "ab", "ac", "ad", "ae"):
        assert rows[case].status == "failed"
        assert rows[case].message
        assert str(scans) not in rows[case].message
    named = {row.case: row for row in _run(bundle, scans, tmp_path / "named", identifiers=True)}
    assert str(scans / "aa.nii.gz") in named["aa"].message
    assert {line["case"]: line["status"] for line in _table(tmp_path / "out")} == {
        case: row.status for case, row in rows.items()
    }
    assert not list((tmp_path / "out").glob("a[a-e]_*"))


def test_a_second_run_keeps_what_is_done_and_unchanged(
    bundle: Path, scans: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    output = tmp_path / "out"
    first = _run(bundle, scans, output)
    (output / "b_mask.mha").unlink()
    volume = read_volume(scans / "more" / "c.nii")
    write_volume(scans / "more" / "c.nii", Volume(_image(rng)[None], volume.geometry))
    second = _run(bundle, scans, output)
    assert [row.status for row in second] == ["kept", "done", "done"]
    assert replace(second[0], status="done") == first[0]
    assert [row.status for row in _run(bundle, scans, output)] == ["kept"] * 3
    # another setting, another answer
    for change in ({"operating_point": "score:0.2"}, {"inference": InferenceSettings(0.25)}):
        assert [row.status for row in _run(bundle, scans, output, **change)] == ["done"] * 3


def test_another_bundle_is_another_prediction(
    bundle: Path, scans: Path, tmp_path: Path, plan: Plan
) -> None:
    _run(bundle, scans / "a.nii.gz", tmp_path / "out")
    mine = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(bundle, Bright(level=1.0), mine, "")
    assert _run(bundle, scans / "a.nii.gz", tmp_path / "out")[0].status == "done"


def test_an_interrupted_run_goes_on_where_it_stopped(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    def interrupt(case: str, done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(bundle, scans, tmp_path / "out", progress=interrupt)
    assert [line["case"] for line in _table(tmp_path / "out")] == ["a", "b"]
    rows = _run(bundle, scans, tmp_path / "out")
    assert [row.status for row in rows] == ["kept", "kept", "done"]
    assert not list((tmp_path / "out").glob(".*"))


def test_a_scan_that_fails_now_loses_its_old_mask(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    _run(bundle, scans, tmp_path / "out")
    (scans / "a.nii.gz").write_bytes(b"broken")
    rows = _run(bundle, scans, tmp_path / "out")
    assert [row.status for row in rows] == ["failed", "kept", "kept"]
    assert not list((tmp_path / "out").glob("a_*"))


def test_c2_voxels_beside_a_header_are_part_of_the_input(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    """Review C2: the file that an NRRD header names was not, and its old results counted."""
    array = read_volume(scans / "a.nii.gz").array[0].astype("<f4")
    sizes = " ".join(str(n) for n in array.shape[::-1])
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "d.raw").write_bytes(array.tobytes())
    (lone / "d.nrrd").write_text(
        f"NRRD0004\ntype: float\ndimension: 3\nsizes: {sizes}\nendian: little\n"
        "encoding: raw\ndata file: d.raw\n"
    )
    for status in ("done", "kept"):
        assert [row.status for row in _run(bundle, lone, tmp_path / "out")] == [status]
    (lone / "d.raw").write_bytes((array + 1).tobytes())
    assert [row.status for row in _run(bundle, lone, tmp_path / "out")] == ["done"]


def test_cases_of_another_input_stay_in_the_table(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    _run(bundle, scans / "a.nii.gz", tmp_path / "out")
    rows = _run(bundle, scans / "more", tmp_path / "out")
    assert [row.case for row in rows] == ["b", "c"]
    assert [line["case"] for line in _table(tmp_path / "out")] == ["a", "b", "c"]


def test_results_inside_the_input_folder_are_no_scans(bundle: Path, scans: Path) -> None:
    _run(bundle, scans, scans / "results", save_probabilities="float16")
    rows = _run(bundle, scans, scans / "results", save_probabilities="float16")
    assert [row.case for row in rows] == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="output folder is the input folder"):
        _run(bundle, scans, scans)


def test_probabilities_are_saved_when_asked_for(bundle: Path, scans: Path, tmp_path: Path) -> None:
    _run(bundle, scans, tmp_path / "out", save_probabilities="float16")
    image = read_volume(scans / "a.nii.gz")
    saved = read_volume(tmp_path / "out" / "probabilities" / "a_1.nii.gz")
    assert saved.geometry.matches(image.geometry)
    assert saved.array.dtype == np.float32
    raw = json.loads((tmp_path / "out" / "a_candidates.json").read_text())
    assert raw["candidates"][0]["score"] == pytest.approx(float(saved.array.max()), abs=1e-6)


def test_rasters_get_png(tmp_path: Path, plan: Plan, rng: np.random.Generator) -> None:
    flat = replace(
        plan,
        dims=2,
        modality="xray",
        spacing_mm=(0.2, 0.2),
        tile_shape=(16, 16),
        architecture=replace(plan.architecture, name="mine"),
    )
    write_bundle(tmp_path / "bundle", Bright(), flat, "")
    image = np.clip(_image(rng)[4], 0, 255).astype(np.uint8)
    for name in ("x.png", "y.tif"):
        volume = Volume(image[None], Geometry.from_spacing(image.shape, (1, 1)))
        write_volume(tmp_path / "in" / name, volume)
    rows = _run(
        tmp_path / "bundle", tmp_path / "in", tmp_path / "out", save_probabilities="float16"
    )
    assert [row.status for row in rows] == ["done", "done"]
    assert read_volume(tmp_path / "out" / "y_mask.png").array[0, 6, 7] == 1
    assert (tmp_path / "out" / "probabilities" / "x_1.tif").is_file()
    assert [r.status for r in _run(tmp_path / "bundle", tmp_path / "in", tmp_path / "out")] == [
        "done",
        "done",
    ]


def test_nothing_to_predict_or_to_predict_with_is_refused(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError):
        _run(bundle, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(BundleError):
        _run(tmp_path / "empty", scans, tmp_path / "out")
    with pytest.raises(ConfigError, match="score:<0 to 1>"):
        _run(bundle, scans, tmp_path / "out", operating_point="fp_per_case:1")
    assert not (tmp_path / "out").exists()


def test_zones_and_burden_stand_in_every_table(bundle: Path, tmp_path: Path) -> None:
    grid = Geometry.from_spacing(SHAPE, (2, 1, 1))
    write_volume(tmp_path / "s" / "x.nii.gz", Volume(_image(np.random.default_rng(0))[None], grid))
    (tmp_path / "list.csv").write_text("case,image,group,visit\nx,s/x.nii.gz,P1,2024-05-01\n")
    halves = np.zeros((1, *SHAPE), np.uint8)
    halves[:, :7], halves[:, 7:] = 1, 2
    write_volume(tmp_path / "zones" / "x.nii.gz", Volume(halves, grid))
    (tmp_path / "zones" / "names.csv").write_text("1,lower part\n2,upper part\n3,elsewhere\n")
    first = _run(bundle, tmp_path / "list.csv", tmp_path / "out")
    assert (first[0].zone_count, first[0].count) == ({}, {"lesion": first[0].n_accepted})
    rows = _run(bundle, tmp_path / "list.csv", tmp_path / "out", zones=tmp_path / "zones")
    assert rows[0].status == "done", "zones make other results"
    again = _run(bundle, tmp_path / "list.csv", tmp_path / "out", zones=tmp_path / "zones")
    assert again[0].status == "kept"
    written = json.loads((tmp_path / "out" / "x_candidates.json").read_text())["candidates"]
    accepted = [c for c in written if c["accepted"]]
    assert {c["zone"] for c in accepted} == {"lower part", "upper part"}
    for table in ("predictions.csv", "study.csv"):
        (cells,) = read_csv(tmp_path / "out" / table)
        assert int(cells["zone_count_lower_part"]) + int(cells["zone_count_upper_part"]) == len(
            accepted
        )
        volume = sum(c["volume_ml"] for c in accepted)
        assert float(cells["ml_lesion"]) == pytest.approx(volume, abs=1e-5)
        assert "zone_ml_elsewhere" not in cells
    assert (cells["group"], cells["visit"], cells["n_lesions"]) == (
        "P1",
        "2024-05-01",
        str(len(accepted)),
    )


def test_zones_of_no_case_are_refused_at_once(bundle: Path, scans: Path, tmp_path: Path) -> None:
    grid = Geometry.from_spacing((4, 4, 4), (1, 1, 1))
    write_volume(tmp_path / "z" / "q.nii.gz", Volume(np.ones((1, 4, 4, 4), np.uint8), grid))
    with pytest.raises(DatasetError, match="No zone mask has the name of a case"):
        _run(bundle, scans, tmp_path / "out", zones=tmp_path / "z")


def test_the_burden_has_the_interval_of_its_operating_point() -> None:
    grid = Geometry.from_spacing((8, 8, 8), (1, 1, 1))
    taken = [
        replace(Candidate.from_box(i, 1, 0.9, (0.0,) * 3 + (4.0,) * 3, grid), volume_ml=0.5)
        for i in (1, 2)
    ]
    taken = [replace(candidate, accepted=True) for candidate in taken]
    point = OperatingPoint("fp_per_case:1", 0.5, count_error=0.5, volume_error=0.7)
    found = burden(taken, {1: "lesion"}, point=point)
    assert (found["n_lesions_low"], found["n_lesions_high"]) == (1, 3)
    assert (found["volume_ml_low"], found["volume_ml_high"]) == (0.464, 2.08)
    bare = burden([replace(taken[0], volume_ml=None)], {1: "lesion"}, point=point)
    assert (bare["n_lesions_low"], bare["volume_ml_low"]) == (1, None)
    assert burden(taken, {1: "lesion"})["n_lesions_high"] is None
