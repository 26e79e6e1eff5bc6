"""A dataset with planted faults. Each fault is found, and the page contains no identifiers."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from lesionseg.cli import run
from lesionseg.config import DataConfig
from lesionseg.errors import DatasetError
from lesionseg.io.text import read_csv, write_json
from lesionseg.pipeline.dataset_inspection import inspect_dataset
from tests.commands import check
from tests.inference.nnunet.probability_files import write_labels
from tests.io.dicom_files import CT, SECONDARY_CAPTURE, write_dicom_file
from tests.io.layouts.test_contract import Coco
from tests.pipeline.cases import boxes, write_array

SHAPE = (12, 10, 8)  # as in the file: x, y, z
PLAIN = np.diag([1.0, 1.0, 2.0, 1.0])
# case ids, file names and patient data of DICOM headers
SECRETS = ("Miller", "Otto", "4711", "fine0", "visit1", "truncated_image", "misrole", ".nii")


def write_case(root, name, image=(), mask=(), affine=PLAIN, mask_affine=None, codes=1):
    """Write a healthy case with one lesion of 8 voxels and return its manifest entries.

    `image` and `mask` are a place and the value that is written there.
    """
    rng = np.random.default_rng(sum(name.encode()))
    arrays = {"image": rng.normal(100, 10, SHAPE).astype(np.float32), "mask": np.zeros(SHAPE, "f4")}
    arrays["mask"][tuple(slice(a, a + 2) for a in rng.integers(1, 6, 3))] = 1
    for kind, change, own in (("image", image, None), ("mask", mask, mask_affine)):
        if change:
            arrays[kind][change[0]] = change[1]
        file = nibabel.Nifti1Image(arrays[kind], affine if own is None else own)
        file.set_sform(file.affine, codes)
        file.set_qform(file.affine, codes)
        nibabel.save(file, root / f"{name}_{kind}.nii")
    return f"{name}_image.nii", f"{name}_mask.nii"


def write_dicom(root, name, places=(0, 2, 4), kind=CT, **elements):
    """Write a DICOM series with slices at these places, and an empty mask."""
    rng = np.random.default_rng(sum(name.encode()))
    grid = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
    shared = {"SeriesInstanceUID": generate_uid(), "Modality": "CT", **grid, **elements}
    for z, mm in enumerate(places):
        pixels = rng.integers(0, 200, (10, 12)).astype(np.uint16)
        place = {"ImagePositionPatient": [0, 0, mm]}
        write_dicom_file(root / name / f"{z}.dcm", pixels, kind, **shared, **place)
    mask = np.zeros((12, 10, len(places)), np.uint8)
    nibabel.save(nibabel.Nifti1Image(mask, np.diag([-1, -1, 2, 1])), root / f"{name}_mask.nii")
    return name, f"{name}_mask.nii"


FLIPPED = np.diag([-1.0, 1.0, 2.0, 1.0])


def write_manifest(root, header, *rows):
    root.mkdir(exist_ok=True)
    (root / "manifest.csv").write_text("\n".join([header, *map(",".join, rows)]) + "\n")
    return root


PLANTED = {
    "Miller_nan": ({"image": ((1, 2, 3), np.nan)}, {"not_finite"}),
    "both": ({"image": ((1, 2, 3), np.inf), "mask": ((0, 0, 0), 7)}, {"not_finite", "labels"}),
    "shifted": ({"mask_affine": PLAIN + np.eye(4, k=3) * 2}, {"geometry"}),
    "fraction": ({"mask": ((0, 0, 0), 0.5)}, {"labels"}),
    "empty": ({"mask": (..., 0)}, {"lesion_free"}),
    "constant": ({"image": (..., 5)}, {"constant"}),
    "coarse": ({"affine": np.diag([1.0, 1.0, 9.0, 1.0])}, {"spacing"}),
    "flipped": ({"affine": FLIPPED}, {"orientation"}),
    "unoriented": ({"affine": FLIPPED, "codes": 0}, {"unoriented"}),
}
# also the faults of the list and its files, and the findings from a comparison of cases
FOUND = {
    **{name: expected for name, (_, expected) in PLANTED.items()},
    "Otto_gap": {"geometry"},
    "missing": {"unreadable"},
    "truncated": {"unreadable"},
    "misrole": {"listed"},
    "fine2": {"listed"},
    "fine0": {"duplicate", "same_patient"},
    "copy": {"duplicate", "same_patient"},
    "visit1": {"same_patient", "burned_in"},
    "visit2": {"same_patient"},
    "shot": {"burned_in", "unreadable"},
}


@pytest.fixture(scope="module")
def broken_dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("broken")
    rows = {f"fine{i}": write_case(root, f"fine{i}") for i in range(6)}
    rows |= {name: write_case(root, name, **odd) for name, (odd, _) in PLANTED.items()}
    rows["truncated"] = write_case(root, "truncated")
    file = root / "truncated_image.nii"
    file.write_bytes(file.read_bytes()[:500])
    copy = write_case(root, "copy")
    image = nibabel.load(root / "fine0_image.nii")
    nibabel.save(image, root / "copy_image.nii.gz")  # another format, the same voxels
    rows["copy"] = ("copy_image.nii.gz", copy[1])
    rows["visit1"] = write_dicom(root, "visit1", PatientID="4711", BurnedInAnnotation="YES")
    rows["visit2"] = write_dicom(root, "visit2", PatientID="4711", PatientName="Miller^Jane")
    rows["Otto_gap"] = write_dicom(root, "Otto_gap", (0, 2, 4.2, 6, 8), PatientName="Miller^Jane")
    rows["shot"] = write_dicom(root, "shot", (0,), SECONDARY_CAPTURE)
    rows["missing"] = ("Miller_gone.nii", "fine1_mask.nii")
    lines = [f"{case},{image},{mask},," for case, (image, mask) in rows.items()]
    lines += [f"fine2,{rows['fine2'][0]},,,", f"misrole,{rows['fine3'][0]},,tset,zero"]
    table = ["case,image,reference,role,fold", *lines, ",Miller_image.nii,,,"]
    (root / "manifest.csv").write_text("\n".join(table) + "\n")
    return root


@pytest.fixture(scope="module")
def outcome(broken_dataset, tmp_path_factory):
    page = tmp_path_factory.mktemp("page") / "dataset_report.html"
    return check(broken_dataset, page)


def kinds(outcome, case):
    return {f.kind for f in outcome.findings if f.case == case}


def test_every_planted_fault_is_found_and_healthy_cases_have_none(outcome):
    assert {case: kinds(outcome, case) & FOUND[case] for case in FOUND} == FOUND
    assert "Otto_gap" in {f.case for f in outcome.findings if f.severity == "error"}
    assert any("line 26: the case" in f.message for f in outcome.findings if not f.case)
    assert all(kinds(outcome, f"fine{i}") == set() for i in (1, 4, 5))
    assert outcome.exit_status == 1
    printed = "\n".join(outcome.summary())
    assert "11 cannot be used" in printed
    assert f"Otto_gap ({outcome.pseudonyms['Otto_gap']}): " in printed
    page = outcome.page.read_text()
    assert "1 entry of the list" in page
    assert page.count("data:image/jpeg") == 15  # every case that can be read


def test_terminal_names_cases_and_page_names_them_only_with_identifiers(
    run_command, broken_dataset, tmp_path
):
    file = tmp_path / "dataset_report.html"
    words = [f"data.root={broken_dataset}", "check=true", f"run_dir={tmp_path}"]
    named = ("Miller_nan_image.nii", "Otto_gap", "line 26: the case")
    printed = run_command("prepare", words, 1).out
    assert all(text in printed for text in (*named, str(file)))
    page = file.read_text()
    assert not [secret for secret in (*SECRETS, str(broken_dataset)) if secret in page]
    assert run("prepare", [*words, "identifiers=true"]) == 1
    assert all(text in file.read_text() for text in named)


def test_training_comes_next_only_if_no_case_has_an_error(outcome, tmp_path):
    assert "prepare check=true data.root=" in outcome.next
    warned = [f for f in outcome.findings if f.severity != "error"]
    assert "train data.root=" in replace(outcome, findings=tuple(warned)).next
    write_manifest(tmp_path, "case,image,reference", ["ab", *write_case(tmp_path, "ab")])
    checked = check(tmp_path, tmp_path / "page.html", run_dir="runs/mine")
    assert "run_dir=runs/mine" in checked.next


@pytest.mark.parametrize(
    ("first", "second", "is_leak"),
    [
        ("train", "test", True),
        ("validation", "external", True),
        ("", "validation", True),
        ("train", "", False),
        ("test", "external", False),
    ],
)
def test_same_case_in_two_roles_is_a_leak(tmp_path, first, second, is_leak):
    names = {"ab": first, "ba": second}  # their scans are alike
    rows = [[name, *write_case(tmp_path, name), role] for name, role in names.items()]
    write_manifest(tmp_path, "case,image,reference,role", *rows)
    found = check(tmp_path, tmp_path / "page.html")
    assert ("leak" in kinds(found, "ab")) == is_leak
    assert {"duplicate", "same_patient"} <= kinds(found, "ab")


def test_equal_channels_of_a_case_are_not_called_two_cases(tmp_path):
    image, mask = write_case(tmp_path, "ab")
    (tmp_path / "again.nii").write_bytes((tmp_path / image).read_bytes())
    write_manifest(tmp_path, "case,image,image_0001,reference", ["ab", image, "again.nii", mask])
    found = kinds(check(tmp_path, tmp_path / "page.html"), "ab")
    assert "same_channels" in found
    assert "duplicate" not in found


def write_nnunet(root, images, masks):
    """Write an nnU-Net folder of one channel. All files contain the same healthy case."""
    root.mkdir()
    image, mask = write_case(root, "ab")
    for part, names, source in (("imagesTr", images, image), ("labelsTr", masks, mask)):
        (root / part).mkdir()
        for name in names:
            (root / part / f"{name}.nii").write_bytes((root / source).read_bytes())
    write_labels(root, {"background": 0, "lesion": 1}, file_ending=".nii")
    return root


def test_faults_of_a_dataset_without_complete_case_are_reported(out, tmp_path, capsys):
    root = write_nnunet(tmp_path / "data", ["A_0000", "B_0000"], ["A-0", "B-0"])
    (root / "imagesTr" / "C.rar").write_text("x")
    status, printed = run_check(root, capsys)
    assert status == 1
    for words in ("'A-0' has no image", "'B' has no mask", "no labelled case", "C.rar"):
        assert words in printed
    assert "train data.root" not in printed
    assert (out / "dataset_report.html").is_file()


def draw_noise(seed, path, **options):
    """Write a picture of 96 by 96 with noise of this seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 255, (96, 96)).astype(np.uint8)
    Image.fromarray(picture).save(path, **options)


def write_pictures(root, header, mask):
    """Write four pictures of 96 by 96 with this mask, and a manifest with the given header."""
    for k in range(4):
        draw_noise(k, root / f"i{k}.png")
        write_array(root / f"m{k}.png", mask)
    return write_manifest(root, header, *([f"c{k}", f"i{k}.png", f"m{k}.png"] for k in range(4)))


def run_check(root, capsys, *more):
    """Run a check. Return its exit status and its output."""
    settings = [f"data.root={root}", "check=true", f"run_dir={root.parent / 'out'}", *more]
    return run("prepare", settings), capsys.readouterr().out


def test_training_is_not_offered_if_the_reference_column_is_misnamed(tmp_path, capsys):
    mask = boxes((96, 96), (40, 40, 12))
    root = write_pictures(tmp_path / "data", "case,image,mask", mask)
    status, printed = run_check(root, capsys)
    assert status == 1  # although every case can be read
    assert "Did you mean 'reference'?" in printed
    assert "train data.root" not in printed
    write_pictures(root, "case,image,reference", mask)
    status, printed = run_check(root, capsys)
    assert (status, "train data.root" in printed) == (0, True)
    assert printed.count("Two cases have the same mask.") == 4
    assert "same patient" not in printed  # because the images differ


def test_masks_that_are_nearly_all_lesion_are_named_by_check_and_training(tmp_path, capsys, caplog):
    data = DataConfig.of(root=str(tmp_path / "data"))
    background = boxes((96, 96), (40, 40, 12))
    root = write_pictures(tmp_path / "data", "case,image,reference", 1 - background)
    _, printed = run_check(root, capsys)
    assert printed.count("Lesions fill more than half of the image") == 4
    inspect_dataset(data, seed=0)
    assert "4 cases: c0, c1, c2, c3 (c0: They fill 98.4 %.)" in caplog.text
    write_pictures(root, "case,image,reference", background | 1)
    _, printed = run_check(root, capsys)
    assert "every voxel of the references is lesion" in printed
    with pytest.raises(DatasetError, match="every voxel of the references is lesion"):
        inspect_dataset(data, seed=0)


def test_case_of_a_rejected_row_does_not_count_as_lesion_free(tmp_path, capsys):
    root = tmp_path / "data"
    for k, name in enumerate("abcd"):
        draw_noise(k, root / "images" / f"{name}.png")
    # the last two numbers of the case a are width and height
    rows = ["a,nodule,50,50,20,20", "b,mass,10,10,40,30", "c,mass,10,50,40,80"]
    (root / "boxes.csv").write_text("\n".join(["case,label,x0,y0,x1,y1", *rows]))
    status, printed = run_check(root, capsys)
    assert status == 1
    assert "x1 is 20" in printed
    assert "- note, 1 case (d): The reference is empty" in printed
    assert "No case has a lesion of these labels" not in printed


def test_crowd_annotations_are_counted_and_not_called_an_empty_reference(tmp_path, capsys):
    root = tmp_path / "data"
    Coco().write(root)
    table = root / "annotations.json"
    table.write_text(table.read_text().replace('"bbox"', '"iscrowd": 1, "bbox"'))
    _, printed = run_check(root, capsys)
    assert "1 crowd annotation (iscrowd=1)" in printed
    assert "1 case (a): The reference has only ignored voxels" in printed
    assert "1 case (b): The reference is empty" in printed


def test_small_mask_of_two_cases_and_image_as_mask_are_found(tmp_path):
    rows = [[name, *write_case(tmp_path, name)] for name in "abcd"]
    rows[1][2] = rows[0][2]
    rows[3][1] = rows[3][2]
    write_manifest(tmp_path, "case,image,reference", *rows)
    outcome = check(tmp_path, tmp_path / "page.html")
    assert kinds(outcome, "a") == kinds(outcome, "b") == {"same_reference"}
    assert kinds(outcome, "c") == set()
    assert kinds(outcome, "d") == {"channels"}


def test_cases_are_numbered_by_name_and_listed_next_to_the_page(out, tmp_path):
    rows = ([name, *write_case(tmp_path, name)] for name in ("c", "a", "b"))
    write_manifest(tmp_path, "case,image,reference", *rows)
    page = out / "page.html"
    check(tmp_path, page)
    listed = [(row["pseudonym"], row["name"]) for row in read_csv(page.parent / "pseudonyms.csv")]
    assert listed == [("case 1", "a"), ("case 2", "b"), ("case 3", "c")]
    check(tmp_path, page, identifiers=True)
    assert not (page.parent / "pseudonyms.csv").exists()


def test_turned_pictures_with_boxes_are_one_note(tmp_path, capsys):
    turned = Image.Exif()
    turned[274] = 6
    for k in range(4):
        exif = turned if k < 2 else Image.Exif()
        draw_noise(k, tmp_path / "data" / "images" / f"i{k}.jpg", exif=exif)
    rows = "".join(f"i{k},nodule,10,20,30,40\n" for k in range(4))
    (tmp_path / "data" / "boxes.csv").write_text(f"case,label,x0,y0,x1,y1\n{rows}")
    _, printed = run_check(tmp_path / "data", capsys)
    assert "note, 2 cases (i0, i1): " in printed
    assert "upright" in printed


def test_split_file_with_an_unknown_case_is_a_finding(tmp_path, capsys):
    names = ["P0", "P1", "P2"]
    root = write_nnunet(tmp_path / "data", [f"{name}_0000" for name in names], names)
    for case, is_known in (("P9", False), ("P2", True)):
        write_json(root / "splits_final.json", [{"train": ["P0", "P1"], "val": [case]}])
        _, printed = run_check(root, capsys)
        assert ("names 1 case that" in printed) != is_known
        assert ("train data.root" in printed) == is_known
