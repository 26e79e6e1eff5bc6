import logging

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ConfigError, DatasetError, GeometryError
from lesionseg.io.predictions import write_prediction
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.evaluate.recipe import evaluate
from tests.evaluation.hand_cases import prediction_of
from tests.pipeline.evaluate.test_evaluate_recipe import (
    GEOMETRY,
    folders,
    lesions,
    rows,
    write_mask,
)

__all__ = ["folders"]  # a fixture

FINE = Geometry.from_spacing((30, 24, 28), (1.0, 0.5, 0.5))


def shifted(fine, coarse):
    """The fine grid so placed that its edges are those of the coarse one."""
    affine = fine.affine.copy()
    affine[:3, 3] += [(a - b) / 2 for a, b in zip(fine.spacing_mm, coarse.spacing_mm, strict=True)][
        ::-1
    ]
    return Geometry(fine.shape, affine)


def write_image(path, seed=0, geometry=GEOMETRY):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).normal(100, 10, geometry.shape).astype(np.float32)
    write_volume(path, Volume(image[None], geometry))


def test_contrast_from_a_folder_of_images(folders, tmp_path, caplog):
    for name in ("a_0000", "b"):
        write_image(tmp_path / "images" / f"{name}.nii.gz")
    with caplog.at_level(logging.WARNING):
        scores = evaluate(*folders, images=tmp_path / "images", replicates=5).scores
    assert "not measured: c" in caplog.text
    assert sum(cell["n"] for cell in scores["recall_by_size_and_contrast"]) == 5
    assert all(float(row["contrast"]) < 5 for row in rows(folders[2] / "lesions.csv"))
    evaluate(*folders, replicates=5)
    assert {row["contrast"] for row in rows(folders[2] / "lesions.csv")} == {""}


def test_bare_masks_have_no_dataset_to_take_images_from(folders):
    with pytest.raises(ConfigError, match="no dataset with images"):
        evaluate(*folders, images="dataset")


def manifest(folders, extra="site"):
    """A dataset with a manifest around the reference masks."""
    root = folders[0].parent
    for name in "abc":
        write_image(root / "scans" / f"{name}.nii.gz")
    lines = [f"{n},scans/{n}.nii.gz,reference/{n}.nii.gz,{'NS'[n == 'b']}" for n in "abc"]
    (root / "manifest.csv").write_text("\n".join([f"case,image,reference,{extra}", *lines]))
    return root


def test_subgroups_by_a_column_of_the_manifest(folders):
    scores = evaluate(manifest(folders), *folders[1:], images="dataset", replicates=5).scores
    found = {row["value"]: row for row in scores["subgroups"]}
    assert {row["by"] for row in scores["subgroups"]} == {"site"}
    assert (found["N"]["n_cases"], found["N"]["n_lesions"], found["N"]["detected"]) == (2, 2, 2)
    assert (found["S"]["n_lesions"], found["S"]["detected"]) == (3, 1)
    assert found["N"]["false_positives_per_case"] == 0.5
    assert scores["recall_by_size_and_contrast"]
    none = evaluate(manifest(folders), *folders[1:], subgroups=[], replicates=5).scores
    assert none["subgroups"] == []


def test_subgroups_by_a_table_beside_bare_folders(folders, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("case,scanner,sex\na,old,f\nb,new,m\nstranger,new,f\n")
    found = evaluate(*folders, columns=table, subgroups=["scanner"], replicates=5).scores[
        "subgroups"
    ]
    assert [(row["value"], row["n_cases"]) for row in found] == [
        ("new", 1),
        ("old", 1),
        ("not stated", 1),
    ]
    with pytest.raises(ConfigError, match=r"column 'site'.*scanner, sex"):
        evaluate(*folders, columns=table, subgroups=["site"])


@pytest.mark.parametrize(
    ("text", "message"),
    [("name,site\na,x\n", "no column 'case'"), ("case,site\nz,x\n", "none of the cases")],
)
def test_a_table_that_does_not_fit_is_refused(folders, tmp_path, text, message):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        evaluate(*folders, columns=tmp_path / "table.csv")


def finer(mask):
    return mask.repeat(3, 0).repeat(2, 1).repeat(2, 2)


def test_another_grid_is_refused_with_both_shown(folders):
    write_mask(folders[1] / "a.nii.gz", finer(lesions(2, [0, 1])), shifted(FINE, GEOMETRY))
    with pytest.raises(GeometryError) as error:
        evaluate(*folders)
    for part in ("(30, 24, 28)", "(10, 12, 14)", "0.5", "3.0", "a.nii.gz", "resample=true"):
        assert part in str(error.value)


def test_another_grid_is_resampled_when_asked_for(folders, caplog):
    before = evaluate(*folders, replicates=5).scores
    write_mask(folders[1] / "a.nii.gz", finer(lesions(2, [0, 1])), shifted(FINE, GEOMETRY))
    with caplog.at_level(logging.WARNING):
        after = evaluate(*folders, resample=True, replicates=5).scores
    assert "reference: a" in caplog.text
    assert after["n_true_positive"] == before["n_true_positive"]
    assert after["dice"] == before["dice"]


def test_resampled_candidates_keep_their_scores_and_are_measured_anew(folders):
    grid = shifted(FINE, GEOMETRY)
    drawn = finer(lesions(2, [0, 1])).astype(np.int32)
    drawn[:, 10:][drawn[:, 10:] > 0] = 2
    drawn[0, 0, 0] = 3  # finer than a voxel of the reference
    (folders[1] / "a.nii.gz").unlink()
    write_prediction(folders[1], prediction_of(drawn, (0.9, 0.4, 0.2), grid, case="a"))
    evaluate(*folders, resample=True, replicates=5)
    found = [row for row in rows(folders[2] / "candidates.csv") if row["case"] == "a"]
    assert [float(row["score"]) for row in found] == [0.9, 0.4, 0.2]
    assert [found[0][f"start_{axis}_vox"] for axis in "zyx"] == ["2", "1", "3"]
    assert [row["outcome"] for row in found] == ["true_positive"] * 2 + ["false_positive"]
    assert float(found[2]["volume_ml"]) == pytest.approx(0.003)  # one voxel of 3 mm³
    assert float(found[0]["diameter_mm"]) == pytest.approx((6 / np.pi * 24 * 3) ** (1 / 3))


def test_rasters_of_another_size_show_the_same_field(tmp_path):
    reference = np.zeros((12, 16), np.uint8)
    reference[2:6, 4:8] = 1
    write_mask(tmp_path / "reference" / "a.png", reference, Geometry.from_spacing((12, 16), (1, 1)))
    double = reference.repeat(2, 0).repeat(2, 1)
    write_mask(tmp_path / "prediction" / "a.png", double, Geometry.from_spacing((24, 32), (1, 1)))
    paths = [tmp_path / name for name in ("reference", "prediction", "out")]
    with pytest.raises(GeometryError, match="grid"):
        evaluate(*paths)
    assert evaluate(*paths, resample=True, replicates=5).scores["dice"]["mean"] == 1.0
