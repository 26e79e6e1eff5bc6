"""Finding scans to predict on."""

from pathlib import Path

import pytest

from lesionseg.errors import DatasetError
from lesionseg.io.layouts.input_images import find_images


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def _found(source: Path, channels: int = 1) -> dict[str, list[str]]:
    return {c.case: [f.name for f in c.images] for c in find_images(source, channels)}


def test_every_file_is_a_case(tmp_path: Path) -> None:
    _touch(tmp_path, "b.nii.gz", "a.png", "deep/er/c.mha", "notes.txt", ".hidden.nii")
    assert _found(tmp_path) == {"a": ["a.png"], "b": ["b.nii.gz"], "c": ["c.mha"]}


def test_channel_files_are_one_case_in_order(tmp_path: Path) -> None:
    _touch(tmp_path, "a_0001.nii.gz", "a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    assert _found(tmp_path, 2) == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
    }


def test_a_single_channel_loses_its_number(tmp_path: Path) -> None:
    assert _found(_touch(tmp_path, "a_0000.nii.gz", "b.nii.gz")) == {
        "a": ["a_0000.nii.gz"],
        "b": ["b.nii.gz"],
    }


def test_a_year_is_no_channel(tmp_path: Path) -> None:
    assert list(_found(_touch(tmp_path, "a_2023.nii", "a_2024.nii"), 2)) == ["a_2023", "a_2024"]


def test_a_case_that_lacks_a_channel_is_there_all_the_same(tmp_path: Path) -> None:
    """Reading it will say so; the others of the folder go on."""
    _touch(tmp_path, "a_0001.nii", "b_0000.nii", "b_0001.nii", "c.nii")
    assert _found(tmp_path, 2) == {
        "a": ["a_0001.nii"],
        "b": ["b_0000.nii", "b_0001.nii"],
        "c": ["c.nii"],
    }


def test_our_own_masks_are_no_scans(tmp_path: Path) -> None:
    _touch(tmp_path, "a.nii.gz", "out/a_mask.nii.gz", "out/a_instances.nii.gz")
    assert list(_found(tmp_path)) == ["a"]


def test_labels_of_a_dataset_are_no_scans(tmp_path: Path) -> None:
    _touch(tmp_path, "imagesTs/a_0000.nii.gz", "labelsTs/a.nii.gz", "labelsTr/b.nii.gz")
    assert _found(tmp_path) == {"a": ["a_0000.nii.gz"]}
    assert list(_found(tmp_path / "labelsTr")) == ["b"]  # asked for by name


def test_equal_names_get_their_folders_before_them(tmp_path: Path) -> None:
    _touch(tmp_path, "sub-01/flair.nii.gz", "sub-02/flair.nii.gz", "t1.nii.gz")
    assert list(_found(tmp_path)) == ["sub-01_flair", "sub-02_flair", "t1"]
    assert list(_found(tmp_path / "sub-*" / "flair.nii.gz")) == ["sub-01_flair", "sub-02_flair"]


def test_names_that_are_one_to_other_systems_get_their_folders(tmp_path: Path) -> None:
    _touch(tmp_path, "x/P1.nii", "y/p1.nii")
    assert list(_found(tmp_path)) == ["x_P1", "y_p1"]


def test_one_file(tmp_path: Path) -> None:
    _touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    assert _found(tmp_path / "a_0000.nii.gz") == {"a": ["a_0000.nii.gz"]}


def test_a_pattern(tmp_path: Path) -> None:
    _touch(tmp_path, "a.nii", "b.nii", "b.png")
    assert list(_found(tmp_path / "*.nii")) == ["a", "b"]


def test_brackets_in_a_name_that_exists_are_no_pattern(tmp_path: Path) -> None:
    _touch(tmp_path, "scans [1]/a.nii")
    assert list(_found(tmp_path / "scans [1]")) == ["a"]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone.* does not exist"):
        find_images(tmp_path / "gone", 1)
    with pytest.raises(DatasetError, match="no image found"):
        find_images(tmp_path, 1)
    with pytest.raises(DatasetError, match="no image found"):
        find_images(tmp_path / "*.nii", 1)


@pytest.mark.parametrize("names", [("a.nii", "a.png"), ("x/a.nii", "y/a.nii", "x_a.nii")])
def test_two_scans_of_one_id_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DatasetError, match="same case id"):
        find_images(_touch(tmp_path, *names), 1)


def test_a_table_names_cases_channels_and_pixel_sizes(tmp_path: Path) -> None:
    table = tmp_path / "manifest.csv"
    table.write_text(
        "case,image,image_0001,pixel_mm,group\nb,more/b.nii,c.nii,,P1\na,a.png,,0.2,\n"
    )
    first, second = find_images(table, 2)
    assert (first.case, first.images, first.columns["pixel_mm"]) == (
        "a",
        (tmp_path / "a.png",),
        "0.2",
    )
    assert (second.case, second.group) == ("b", "P1")
    assert second.images == (tmp_path / "more/b.nii", tmp_path / "c.nii")


@pytest.mark.parametrize(
    "rows", ["image\nb.nii", "case,image\n,b.nii", "case,image\nb,", "case,image\na,b\na,c\n"]
)
def test_a_table_without_cases_of_their_own_is_refused(tmp_path: Path, rows: str) -> None:
    (tmp_path / "list.csv").write_text(rows)
    with pytest.raises(DatasetError, match=r"list\.csv"):
        find_images(tmp_path / "list.csv", 1)


def test_a_case_id_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("case,image\n../a,b.nii\n")
    with pytest.raises(DatasetError, match="is a path"):
        find_images(tmp_path / "list.csv", 1)


def test_a_channel_is_missing_where_no_file_has_its_number(tmp_path: Path) -> None:
    names = ("a_0000.nii", "a_0002.nii", "b_0001.nii", "c.nii", "d_0000.nii", "d_0001.nii")
    found = {c.case: c.missing for c in find_images(_touch(tmp_path, *names), 3)}
    assert found == {"a": (1,), "b": (0, 2), "c": (), "d": (2,)}
    (lone,) = find_images(tmp_path / "a_0000.nii", 1)
    assert lone.missing == ()


def test_a_channel_is_missing_where_its_cell_is_empty(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("case,image,image_0001\na,a.nii,\nb,,b.nii\n")
    assert [c.missing for c in find_images(table, 2)] == [(1,), (0,)]
    assert [c.missing for c in find_images(table, 1)] == [(), (0,)]  # the second is refused as two
