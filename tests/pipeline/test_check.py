"""A deliberately broken dataset: every planted fault is found, and the page names nobody."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.uid import generate_uid

from lesionseg.cli import run
from lesionseg.core import Geometry, Volume
from lesionseg.io.layouts import read_dataset
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.check import check_dataset
from tests.io.dicom_files import CT, DX, SECONDARY_CAPTURE, save

SHAPE = (12, 10, 8)  # as in the file: x, y, z
# case ids, file names, what DICOM headers say of the patient
SECRETS = ("Miller", "Otto", "4711", "fine0", "visit1", "truncated_image", "misrole", ".nii")
Change = Callable[[dict[str, Any]], None]


def write_case(root, name, change=None):
    """A healthy case with one lesion of 8 voxels, changed by `change`; its manifest entries."""
    rng = np.random.default_rng(sum(name.encode()))
    parts = {
        "image": rng.normal(100, 10, SHAPE).astype(np.float32),
        "mask": np.zeros(SHAPE, np.float32),
        "affine": np.diag([1.0, 1.0, 2.0, 1.0]),
        "mask_affine": None,
        "codes": 1,
    }
    start = rng.integers(1, 6, 3)
    parts["mask"][tuple(slice(a, a + 2) for a in start)] = 1
    if change:
        change(parts)
    for kind in ("image", "mask"):
        own = parts["mask_affine"] if kind == "mask" else None
        affine = parts["affine"] if own is None else own
        file = nibabel.Nifti1Image(parts[kind], affine)
        file.set_sform(affine, parts["codes"])
        file.set_qform(affine, parts["codes"])
        nibabel.save(file, root / f"{name}_{kind}.nii")
    return f"{name}_image.nii", f"{name}_mask.nii"


def write_dicom(root, name, odd=None, n=3, **elements):
    """A DICOM series of n slices and an empty mask beside it; `odd` changes the middle slice."""
    rng = np.random.default_rng(sum(name.encode()))
    grid = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
    shared = {"SeriesInstanceUID": generate_uid(), "Modality": "CT", **grid, **elements}
    kind = shared.pop("SOPClassUID", CT)
    for z in range(n):
        own = {"ImagePositionPatient": [0, 0, 2 * z]} | ((odd or {}) if z == n // 2 else {})
        pixels = rng.integers(0, 200, (10, 12)).astype(np.uint16)
        save(root / name / f"{z}.dcm", pixels, kind, **shared, **own)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    mask = nibabel.Nifti1Image(np.zeros((12, 10, n), np.uint8), affine)
    nibabel.save(mask, root / f"{name}_mask.nii")
    return name, f"{name}_mask.nii"


def change(**parts):
    """Parts replaced, or with `image` and `mask` by index: {(x, y, z): value}."""

    def apply(case):
        for name, value in parts.items():
            if isinstance(value, dict):
                for place, voxel in value.items():
                    case[name][place] = voxel
            else:
                case[name] = value

    return apply


SHIFTED = np.diag([1.0, 1.0, 2.0, 1.0]) + np.eye(4, k=3) * 2
FLIPPED = np.diag([-1.0, 1.0, 2.0, 1.0])
PLANTED = {
    "Miller_nan": (change(image={(1, 2, 3): np.nan}), {"not_finite"}),
    "two_faults": (
        change(image={(1, 2, 3): np.inf}, mask={(0, 0, 0): 7}),
        {"not_finite", "labels"},
    ),
    "shifted": (change(mask_affine=SHIFTED), {"geometry"}),
    "other_shape": (change(mask=np.zeros((3, 3, 3), np.uint8)), {"geometry"}),
    "fraction": (change(mask={(0, 0, 0): 0.5}), {"labels"}),
    "empty": (change(mask={...: 0}), {"lesion_free"}),
    "constant": (change(image={...: 5}), {"constant"}),
    "coarse": (change(affine=np.diag([1.0, 1.0, 9.0, 1.0])), {"spacing"}),
    "flipped": (change(affine=FLIPPED), {"orientation"}),
    "unoriented": (change(affine=FLIPPED, codes=0), {"unoriented"}),
}
# more: what the list or its files say wrongly, and what only shows beside the others
FOUND = {
    **{name: expected for name, (_, expected) in PLANTED.items()},
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
# what is wrong with the middle slice of five, kind of the finding and a word of its text
PLANTED_DICOM = {
    "Otto_duplicate": ({"ImagePositionPatient": [0, 0, 2]}, "geometry", "duplicates"),
    "Otto_gap": ({"ImagePositionPatient": [0, 0, 4.2]}, "geometry", "not evenly spaced"),
    "Otto_scout": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "unreadable", "localiser"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    root = tmp_path_factory.mktemp("broken")
    rows = {f"fine{i}": write_case(root, f"fine{i}") for i in range(6)}
    rows |= {name: write_case(root, name, change) for name, (change, _) in PLANTED.items()}
    rows["truncated"] = write_case(root, "truncated")
    file = root / "truncated_image.nii"
    file.write_bytes(file.read_bytes()[:500])
    copy = write_case(root, "copy")
    image = nibabel.load(root / "fine0_image.nii")
    nibabel.save(image, root / "copy_image.nii.gz")  # another format, the same voxels
    rows["copy"] = ("copy_image.nii.gz", copy[1])
    rows["visit1"] = write_dicom(root, "visit1", PatientID="4711", BurnedInAnnotation="YES")
    rows["visit2"] = write_dicom(root, "visit2", PatientID="4711", PatientName="Miller^Jane")
    for name, (odd, _, _) in PLANTED_DICOM.items():
        rows[name] = write_dicom(root, name, odd, 5, PatientName="Miller^Jane")
    rows["shot"] = write_dicom(root, "shot", n=1, SOPClassUID=SECONDARY_CAPTURE)
    rows["missing"] = ("Miller_gone.nii", "fine1_mask.nii")
    lines = [f"{case},{image},{mask},," for case, (image, mask) in rows.items()]
    lines += [f"fine2,{rows['fine2'][0]},,,", f"misrole,{rows['fine3'][0]},,tset,zero"]
    lines += [",Miller_image.nii,,,"]
    table = ["case,image,reference,role,fold", *lines]
    (root / "manifest.csv").write_text("\n".join(table) + "\n")
    return root


@pytest.fixture(scope="module")
def checked(broken, tmp_path_factory):
    page = tmp_path_factory.mktemp("page") / "dataset_report.html"
    return check_dataset(read_dataset(broken, lenient=True), page)


def kinds(checked, case):
    return {f.kind for f in checked.findings if f.case == case}


@pytest.mark.parametrize("case", FOUND)
def test_a_planted_fault_is_found(checked, case):
    assert kinds(checked, case) >= FOUND[case]


@pytest.mark.parametrize("case", PLANTED_DICOM)
def test_a_planted_fault_of_a_series_is_found(checked, case):
    _, kind, word = PLANTED_DICOM[case]
    (found,) = (f for f in checked.findings if f.case == case and f.severity == "error")
    assert (found.kind, word in found.named) == (kind, True)


def test_an_entry_without_a_case_and_healthy_cases(checked):
    assert any("line 29: the case" in f.named for f in checked.findings if not f.case)
    assert "1 entry of the list" in checked.page.read_text()
    assert all(kinds(checked, f"fine{i}") == set() for i in (1, 4, 5))
    assert checked.exit_status == 1
    assert "14 cannot be used" in checked.summary()[-3]


def test_the_page_shows_every_case_and_names_nobody(checked, broken):
    page = checked.page.read_text()
    printed = "\n".join(checked.summary())
    for secret in (*SECRETS, str(broken)):
        assert secret not in page
        assert secret not in printed
    assert page.count("data:image/jpeg") == 15  # every case that can be read


def test_the_command_names_nobody_unless_asked_to(broken, checked, tmp_path, capsys):
    out = tmp_path / "out"
    command = [f"data.root={broken}", "check=true", f"run_dir={out}"]
    assert run("prepare", command) == 1
    seen = "".join(capsys.readouterr())
    assert str(out / "dataset_report.html") in seen
    assert (out / "dataset_report.html").is_file()
    assert not [secret for secret in SECRETS if secret in seen]
    named = "\n".join(replace(checked, identifiers=True).summary())
    assert "Miller_nan_image.nii" in named
    assert "Otto_gap" in named


def test_a_leak_into_the_test_role_is_found(tmp_path):
    root = tmp_path / "leak"
    for part in ("Tr", "Ts"):
        (root / f"images{part}").mkdir(parents=True)
        (root / f"labels{part}").mkdir()
        write_case(root, "x")
        (root / "x_image.nii").rename(root / f"images{part}" / f"case{part}_0000.nii")
        (root / "x_mask.nii").rename(root / f"labels{part}" / f"case{part}.nii")
    (root / "dataset.json").write_text(
        '{"channel_names": {"0": "T1"}, "labels": {"background": 0, "lesion": 1}}'
    )
    found = check_dataset(read_dataset(root), tmp_path / "page.html")
    assert kinds(found, "caseTr") == {"duplicate", "same_patient", "leak"}
    assert found.exit_status == 0


def test_of_radiographs_it_says_how_they_were_taken_and_what_is_hidden(tmp_path):
    rows = ["case,image,reference"]
    for number, intent in enumerate(("FOR PRESENTATION", "FOR PROCESSING")):
        pixels = np.random.default_rng(number).integers(1, 900, (40, 30)).astype(np.uint16)
        pixels[:, :5] = 0
        save(
            tmp_path / "data" / f"Miller_{number}.dcm",
            pixels,
            DX,
            Modality="DX",
            PatientID=f"P{number}",
            ImagerPixelSpacing=[0.2, 0.2],
            ViewPosition="PA",
            PixelPaddingValue=0,
            PresentationIntentType=intent,
            BurnedInAnnotation="YES" if number else "NO",
        )
        mask = np.zeros((1, 40, 30), np.uint8)
        mask[0, 10:14, 10:14] = 1
        place = tmp_path / "data" / f"m{number}.png"
        write_volume(place, Volume(mask, Geometry.from_spacing((40, 30), (1, 1))))
        rows.append(f"Miller_{number},Miller_{number}.dcm,m{number}.png")
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(rows) + "\n")
    checked = check_dataset(read_dataset(tmp_path / "data"), tmp_path / "page.html")
    page = checked.page.read_text()
    for said in ("for processing", "for presentation", "at the detector"):
        assert said in page
    assert "laterality" not in page  # no file states it
    assert "Miller" not in page + "\n".join(checked.summary())
    assert kinds(checked, "Miller_0") == {"detector"}
    assert kinds(checked, "Miller_1") == {"detector", "remark", "burned_in"}
    assert checked.exit_status == 0
