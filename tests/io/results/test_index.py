"""The predicted cases of a folder: which files belong to which case, and unusable files."""

import pytest

from lesionseg.errors import DatasetError, ReadError
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.results.index import find_masks, find_predictions


def _touch(folder, names):
    for name in names.split():
        (folder / name).touch()


def test_files_of_a_folder_are_grouped_by_case(tmp_path):
    _touch(tmp_path, "B_mask.png A_mask.nii.gz A_instances.nii.gz A_candidates.json C.nrrd")
    _touch(tmp_path, "D_candidates.json predictions.csv dataset.json .E.nii a_seg.dcm")
    _touch(tmp_path, "A_preview.png F.seg.nrrd G_mask.seg.nrrd H_label-lesion_mask.SEG.NRRD")
    found = find_predictions(tmp_path)
    assert list(found) == list("ABCDFGH")
    kinds = {kind: tmp_path / f"A_{kind}.nii.gz" for kind in ("mask", "instances")}
    assert found["A"] == PredictionFiles("A", candidates=tmp_path / "A_candidates.json", **kinds)
    assert found["C"] == PredictionFiles("C", mask=tmp_path / "C.nrrd")
    assert found["D"] == PredictionFiles("D", candidates=tmp_path / "D_candidates.json")
    masks = find_masks(tmp_path)
    assert list(masks) == list("ABCFGH")
    assert masks["B"] == tmp_path / "B_mask.png"


def test_message_names_the_file_of_boxes_of_other_programs(tmp_path):
    _touch(tmp_path, "coco_instances_results.json a.txt")
    with pytest.raises(DatasetError, match=r"COCO results.*<case>_candidates\.json.*start_vox"):
        find_predictions(tmp_path)


@pytest.mark.parametrize("name", ["a_regions.nii.gz", "a.npz"])
def test_case_without_mask_and_candidates_is_an_error(tmp_path, oblique, name):
    _touch(tmp_path, name)
    with pytest.raises(ReadError, match=rf"{name}: the mask a_mask"):
        find_predictions(tmp_path)["a"].read(geometry=oblique)


def test_error_about_an_empty_folder_names_files_that_are_found(tmp_path):
    with pytest.raises(DatasetError) as caught:
        find_predictions(tmp_path)
    listed = str(caught.value).partition("<case>.* or ")[2].rstrip(".").replace(".*", ".nii.gz")
    for name in listed.replace("<case>", "a").split(", "):
        _touch(tmp_path, name)
        assert list(find_predictions(tmp_path)) == ["a"]
        (tmp_path / name).unlink()


@pytest.mark.parametrize("find", [find_masks, find_predictions])
def test_folder_without_or_with_ambiguous_files_is_an_error(tmp_path, find):
    for folder in (tmp_path / "gone", tmp_path):
        with pytest.raises(DatasetError):
            find(folder)
    _touch(tmp_path, "A_mask.nii.gz A.nii.gz")
    with pytest.raises(DatasetError, match=r"A_mask\.nii\.gz.*same case"):
        find(tmp_path)
    (tmp_path / "A.nii.gz").rename(tmp_path / "a\nb_mask.nii.gz")
    with pytest.raises(DatasetError, match="invisible"):
        find(tmp_path)
