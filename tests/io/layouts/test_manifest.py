"""Datasets as a table of cases."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import ContentError, DatasetError, LesionsegError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset

Write = Callable[..., Path]


@pytest.fixture
def manifest(tmp_path: Path, write_nifti: Write) -> Callable[[str], Path]:
    """Write a manifest beside `scans/a.nii.gz`, `scans/b.nii.gz` and `scans/m.nii.gz`."""

    def write(text: str) -> Path:
        for name in "ab":
            write_nifti(tmp_path / "scans" / f"{name}.nii.gz", np.ones((5, 4, 3), np.int16))
        mask = np.zeros((5, 4, 3))
        mask[0, 0, 0] = 1
        write_nifti(tmp_path / "scans" / "m.nii.gz", mask)
        (tmp_path / "manifest.csv").write_text(text)
        return tmp_path

    return write


def test_every_column_is_taken_up(manifest: Callable[[str], Path]) -> None:
    root = manifest(
        "case,image,image_0001,reference,group,role,fold,scanner\n"
        "A,scans/a.nii.gz,scans/b.nii.gz,scans/m.nii.gz,p1,test,,Siemens\n"
        "B,scans/b.nii.gz,scans/a.nii.gz,,,,3,\n"
    )
    dataset = read_dataset(root)
    assert dataset.convention == "manifest"
    assert dataset.channel_names == ("image", "image_0001")
    assert dataset.labels == {1: "lesion"}
    a, b = dataset.cases
    assert [f.name for f in a.images] == ["a.nii.gz", "b.nii.gz"]
    assert a.reference == root / "scans" / "m.nii.gz"
    assert (a.group, a.role, a.fold, a.columns) == ("p1", "test", None, {"scanner": "Siemens"})
    assert (b.reference, b.group, b.role, b.fold) == (None, "B", None, 3)
    assert read_case(b, dataset).reference is None
    reference = read_case(a, dataset).reference
    assert reference is not None
    assert reference.labels is not None
    assert int(reference.labels.sum()) == 1


def test_two_columns_are_enough(manifest: Callable[[str], Path]) -> None:
    dataset = read_dataset(manifest("case,image\nA,scans/a.nii.gz\n"))
    assert len(dataset.cases) == 1


def test_labels_beside_it_name_the_values(manifest: Callable[[str], Path]) -> None:
    root = manifest("case,image,reference\nA,scans/a.nii.gz,scans/m.nii.gz\n")
    (root / "labels.json").write_text('{"3": "cyst", "2": "scar"}')
    dataset = read_dataset(root)
    assert list(dataset.labels.items()) == [(2, "scar"), (3, "cyst")]
    with pytest.raises(ContentError, match=r"m\.nii\.gz: the values \[1\] are none"):
        read_case(dataset.cases[0], dataset)


def test_a_value_beside_it_is_ignored(manifest: Callable[[str], Path]) -> None:
    root = manifest("case,image,reference\nA,scans/a.nii.gz,scans/m.nii.gz\n")
    (root / "labels.json").write_text('{"1": "ignore", "2": "scar"}')
    dataset = read_dataset(root)
    assert (dict(dataset.labels), dataset.ignore_label) == ({2: "scar"}, 1)
    reference = read_case(dataset.cases[0], dataset).reference
    assert reference is not None
    assert reference.labels is not None
    assert reference.ignore is not None
    assert (int(reference.labels.sum()), int(reference.ignore.sum())) == (0, 1)


@pytest.mark.parametrize(
    "labels", ["[]", "{}", '{"1": "ignore"}', '{"0": "background"}', '{"lesion": 1}']
)
def test_unclear_labels_are_refused(manifest: Callable[[str], Path], labels: str) -> None:
    root = manifest("case,image\nA,scans/a.nii.gz\n")
    (root / "labels.json").write_text(labels)
    with pytest.raises(DatasetError, match=r"labels\.json"):
        read_dataset(root)


def test_a_manifest_goes_before_other_conventions(manifest: Callable[[str], Path]) -> None:
    root = manifest("case,image\nA,scans/a.nii.gz\n")
    (root / "dataset.json").write_text("{}")
    assert read_dataset(root).convention == "manifest"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name,image\nA,scans/a.nii.gz\n", "no column 'case'"),
        ("case,reference\nA,scans/m.nii.gz\n", "no column 'image'"),
        ("case,image\n", "no case"),
        ("case,image\nA,scans/gone.nii.gz\n", "gone.* does not exist"),
        ("case,image,reference\nA,scans/a.nii.gz,scans/gone.nii.gz\n", "gone.* does not exist"),
        ("case,image\n,scans/a.nii.gz\n", "line 2: the case"),
        ("case,image,image_0001\nA,scans/a.nii.gz,\n", "does not have one file per channel"),
        ("case,image,role\nA,scans/a.nii.gz,training\n", "line 2: role"),
        ("case,image,fold\nA,scans/a.nii.gz,x\n", "line 2: fold"),
        ("case,image\nA,scans/a.nii.gz\nA,scans/b.nii.gz\n", "'A' is listed more than once"),
        ("case,image\n../A,scans/a.nii.gz\n", "cannot be a file name"),
    ],
)
def test_what_is_wrong_is_said(manifest: Callable[[str], Path], text: str, match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        read_dataset(manifest(text))


def test_an_empty_cell_is_a_channel_that_the_case_may_lack(
    manifest: Callable[[str], Path],
) -> None:
    root = manifest("case,image,image_0001\nA,,scans/a.nii.gz\nB,scans/b.nii.gz,scans/a.nii.gz\n")
    with pytest.raises(DatasetError, match="does not have one file per channel"):
        read_dataset(root)
    dataset = read_dataset(root, may_lack=True)
    assert [(c.missing, len(c.images)) for c in dataset.cases] == [((0,), 1), ((), 2)]
    assert read_case(dataset.cases[0], dataset).image.array.shape[0] == 2
    with pytest.raises(DatasetError, match="'A' does not have one file per channel"):
        read_case(dataset.cases[0], replace(dataset, may_lack=False))


def test_an_empty_manifest_is_refused(manifest: Callable[[str], Path]) -> None:
    with pytest.raises(ReadError, match=r"empty.*manifest\.csv"):
        read_dataset(manifest(""))


ANNOTATED = (
    "case,image,reference,annotated\n"
    "A,scans/a.nii.gz,scans/m.nii.gz,scar\n"
    "B,scans/b.nii.gz,scans/m.nii.gz,\n"
    "C,scans/b.nii.gz,scans/m.nii.gz, cyst ; scar\n"
    "D,scans/b.nii.gz,scans/m.nii.gz,cyst\n"
)


def test_a_case_says_which_labels_were_looked_for(manifest: Callable[[str], Path]) -> None:
    """The mask holds one voxel of a cyst; where none were looked for it is background."""
    root = manifest(ANNOTATED)
    (root / "labels.json").write_text('{"1": "cyst", "2": "scar"}')
    dataset = read_dataset(root)
    assert [case.annotated for case in dataset.cases] == [("scar",), (), (), ("cyst",)]
    assert dataset.cases[0].columns == {"annotated": "scar"}  # a subgroup, too
    references = [read_case(case, dataset).reference for case in dataset.cases]
    assert [r.unannotated for r in references if r] == [(1,), (), (), (2,)]
    assert [int(r.labels.sum()) for r in references if r and r.labels is not None] == [0, 1, 1, 1]


def test_labels_that_nobody_knows_are_refused_by_line(manifest: Callable[[str], Path]) -> None:
    root = manifest(ANNOTATED)
    (root / "labels.json").write_text('{"1": "cysts", "2": "scar"}')
    with pytest.raises(LesionsegError, match=r"manifest\.csv: line 4.*cyst.*Did you mean .cysts"):
        read_dataset(root)


def test_labels_that_were_not_looked_for_cannot_be_merged(manifest: Callable[[str], Path]) -> None:
    root = manifest(ANNOTATED)
    (root / "labels.json").write_text('{"1": "cyst", "2": "scar"}')
    with pytest.raises(DatasetError, match=r"merge_labels=true needs all labels.*'A'"):
        read_dataset(root, merge_labels=True)


def test_instances_are_of_the_first_label(manifest: Callable[[str], Path]) -> None:
    root = manifest("case,image,instances,annotated\nA,scans/a.nii.gz,scans/m.nii.gz,scar\n")
    (root / "labels.json").write_text('{"1": "cyst", "2": "scar"}')
    with pytest.raises(DatasetError, match=r"line 2: .*'cyst', not annotated"):
        read_dataset(root)
