"""Datasets as a table of cases."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Dataset, Reference
from lesionseg.errors import ContentError, DatasetError, LesionsegError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset

Write = Callable[..., Path]
Manifest = Callable[..., Path]


@pytest.fixture
def manifest(tmp_path: Path, write_nifti: Write) -> Manifest:
    """Write a manifest, perhaps labels, beside `scans/a.nii.gz`, `b.nii.gz` and `m.nii.gz`."""

    def write(text: str, labels: str = "") -> Path:
        for name in "ab":
            write_nifti(tmp_path / "scans" / f"{name}.nii.gz", np.ones((5, 4, 3), np.int16))
        mask = np.zeros((5, 4, 3))
        mask[0, 0, 0] = 1
        write_nifti(tmp_path / "scans" / "m.nii.gz", mask)
        (tmp_path / "manifest.csv").write_text(text)
        if labels:
            (tmp_path / "labels.json").write_text(labels)
        return tmp_path

    return write


def reference_of(dataset: Dataset, place: int = 0) -> Reference:
    return read_case(dataset.cases[place], dataset).reference


ONE = "case,image,reference\nA,scans/a.nii.gz,scans/m.nii.gz\n"


def test_every_column_is_taken_up(manifest: Manifest) -> None:
    root = manifest(
        "case,image,image_0001,reference,group,role,fold,scanner\n"
        "A,scans/a.nii.gz,scans/b.nii.gz,scans/m.nii.gz,p1,test,,Siemens\n"
        "B,scans/b.nii.gz,scans/a.nii.gz,,,,3,\n"
    )
    (root / "dataset.json").write_text("{}")  # a manifest goes before
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
    labels = reference_of(dataset).labels
    assert labels.sum() == 1


def test_labels_beside_it_name_the_values(manifest: Manifest) -> None:
    dataset = read_dataset(manifest(ONE, '{"3": "cyst", "2": "scar"}'))
    assert list(dataset.labels.items()) == [(2, "scar"), (3, "cyst")]
    with pytest.raises(ContentError, match=r"m\.nii\.gz: the values \[1\]"):
        reference_of(dataset)
    dataset = read_dataset(manifest(ONE, '{"1": "ignore", "2": "scar"}'))
    assert (dict(dataset.labels), dataset.ignore_label) == ({2: "scar"}, 1)
    reference = reference_of(dataset)
    assert (int(reference.labels.sum()), int(reference.ignore.sum())) == (0, 1)


@pytest.mark.parametrize("labels", ["[]", "{}", '{"1": "ignore"}', '{"lesion": 1}'])
def test_unclear_labels_are_an_error(manifest: Manifest, labels: str) -> None:
    with pytest.raises(DatasetError, match=r"labels\.json"):
        read_dataset(manifest(ONE, labels))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name,image\nA,scans/a.nii.gz\n", "'case'"),
        ("case,image\n", "no case"),
        ("case,image,reference\nA,scans/a.nii.gz,scans/gone.nii.gz\n", "gone"),
        ("case,image\n,scans/a.nii.gz\n", "line 2"),
        ("case,image,image_0001\nA,scans/a.nii.gz,\n", "one file per channel"),
        ("case,image,role\nA,scans/a.nii.gz,training\n", "line 2: role"),
        ("case,image,fold\nA,scans/a.nii.gz,x\n", "line 2: fold"),
        ("case,image\nA,scans/a.nii.gz\nA,scans/b.nii.gz\n", "'A' is listed more than once"),
        ("case,image\n../A,scans/a.nii.gz\n", "cannot be a file name"),
        ("case,image\na\u202eb,scans/a.nii.gz\n", r"'a\\u202eb' cannot be a file name"),
        ("case,image,reference,instances\nA,scans/a.nii.gz,a,b\n", "not both"),
    ],
)
def test_what_is_wrong_is_said(manifest: Manifest, text: str, match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        read_dataset(manifest(text))
    with pytest.raises(ReadError, match=r"manifest\.csv"):
        read_dataset(manifest(""))


def test_an_empty_cell_is_a_channel_that_the_case_may_lack(manifest: Manifest) -> None:
    root = manifest("case,image,image_0001\nA,,scans/a.nii.gz\nB,scans/b.nii.gz,scans/a.nii.gz\n")
    with pytest.raises(DatasetError, match="one file per channel"):
        read_dataset(root)
    dataset = read_dataset(root, may_lack=True)
    assert [(c.missing, len(c.images)) for c in dataset.cases] == [((0,), 1), ((), 2)]
    assert read_case(dataset.cases[0], dataset).image.array.shape[0] == 2
    with pytest.raises(DatasetError, match="'A'"):
        read_case(dataset.cases[0], replace(dataset, may_lack=False))


ANNOTATED = (
    "case,image,reference,annotated\n"
    "A,scans/a.nii.gz,scans/m.nii.gz,scar\n"
    "B,scans/b.nii.gz,scans/m.nii.gz,\n"
    "C,scans/b.nii.gz,scans/m.nii.gz, cyst ; scar\n"
    "D,scans/b.nii.gz,scans/m.nii.gz,cyst\n"
)
CYST = '{"1": "cyst", "2": "scar"}'


def test_a_case_says_which_labels_were_looked_for(manifest: Manifest) -> None:
    """The mask holds one voxel of a cyst; where none were looked for it is background."""
    dataset = read_dataset(manifest(ANNOTATED, CYST))
    assert [case.annotated for case in dataset.cases] == [("scar",), (), (), ("cyst",)]
    assert dataset.cases[0].columns == {"annotated": "scar"}  # a subgroup, too
    references = [reference_of(dataset, place) for place in range(4)]
    assert [r.unannotated for r in references] == [(1,), (), (), (2,)]
    assert [int(r.labels.sum()) for r in references if r.labels is not None] == [0, 1, 1, 1]
    with pytest.raises(DatasetError, match="'A'"):
        read_dataset(dataset.root, merge_labels=True)
    with pytest.raises(LesionsegError, match=r"line 4.*Did you mean 'cysts'"):
        read_dataset(manifest(ANNOTATED, CYST.replace("cyst", "cysts")))


def test_instance_masks_between_semicolons(manifest: Manifest, write_nifti: Write) -> None:
    root = manifest("case;image;instances;age\nA;scans/a.nii.gz;ids.nii.gz;61\n")
    ids = np.zeros((5, 4, 3), np.uint8)
    ids[1, 2, 0], ids[4, 0, 2] = 5, 10
    write_nifti(root / "ids.nii.gz", ids)
    dataset = read_dataset(root)
    assert dataset.cases[0].columns == {"age": "61"}
    reference = reference_of(dataset)
    assert reference.instance_labels == (1, 1)
    assert (reference.instances[0, 2, 1], reference.instances[2, 0, 4]) == (1, 2)
    text = "case,image,instances,annotated\nA,scans/a.nii.gz,scans/m.nii.gz,scar\n"
    with pytest.raises(DatasetError, match=r"line 2: .*'cyst'"):  # of the first label
        read_dataset(manifest(text, CYST))
