"""Finding scans to predict on."""

import pytest

from lesionseg.errors import DatasetError
from lesionseg.io.layouts.input_images import find_images


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def _found(source, channels=1):
    return {c.case: [f.name for f in c.images] for c in find_images(source, channels)}


@pytest.mark.parametrize(
    ("names", "channels", "expected"),
    [
        ("b.nii.gz deep/er/c.mha notes.txt .hidden.nii", 1, {"b": "b.nii.gz", "c": "c.mha"}),
        ("a_0000.nii.gz b.nii.gz", 1, {"a": "a_0000.nii.gz", "b": "b.nii.gz"}),
        ("a_2023.nii a_2024.nii", 2, {"a_2023": "a_2023.nii", "a_2024": "a_2024.nii"}),
        # reading the first says that a channel is missing, and the others go on
        ("a_0001.nii b_0000.nii b_0001.nii", 2, {"a": "a_0001.nii", "b": "b_0000.nii b_0001.nii"}),
        ("a.nii.gz out/a_mask.nii.gz out/a_instances.nii.gz", 1, {"a": "a.nii.gz"}),
        ("imagesTs/a_0000.nii labelsTs/a.nii labelsTr/b.nii", 1, {"a": "a_0000.nii"}),
        # Windows and macOS take P1 and p1 for one
        ("x/P1.nii y/p1.nii", 1, {"x_P1": "P1.nii", "y_p1": "p1.nii"}),
    ],
)
def test_files_of_a_folder_are_cases(tmp_path, names, channels, expected):
    found = _found(_touch(tmp_path, *names.split()), channels)
    assert found == {case: files.split() for case, files in expected.items()}


def test_equal_names_get_their_folders_before_them(tmp_path):
    _touch(tmp_path, "sub-01/flair.nii.gz", "sub-02/flair.nii.gz", "t1.nii.gz")
    assert list(_found(tmp_path)) == ["sub-01_flair", "sub-02_flair", "t1"]
    assert list(_found(tmp_path / "sub-*" / "flair.nii.gz")) == ["sub-01_flair", "sub-02_flair"]


def test_a_file_a_pattern_and_a_name_with_brackets(tmp_path):
    _touch(tmp_path, "a_0000.nii", "b.nii", "b.png", "scans [1]/a.nii", "labelsTr/b.nii")
    assert _found(tmp_path / "a_0000.nii") == {"a": ["a_0000.nii"]}
    assert list(_found(tmp_path / "*.nii")) == ["a", "b"]
    assert list(_found(tmp_path / "scans [1]")) == ["a"]
    assert list(_found(tmp_path / "labelsTr")) == ["b"]  # asked for by name


@pytest.mark.parametrize("names", ["a.nii a.png", "x/a.nii y/a.nii x_a.nii"])
def test_nothing_and_two_scans_of_one_id_are_an_error(tmp_path, names):
    for source in (tmp_path, tmp_path / "gone", tmp_path / "*.nii"):
        with pytest.raises(DatasetError):
            find_images(source, 1)
    with pytest.raises(DatasetError, match="same case id"):
        find_images(_touch(tmp_path, *names.split()), 1)


def test_a_table_names_cases_channels_and_pixel_sizes(tmp_path):
    table = tmp_path / "manifest.csv"
    table.write_text(
        "case,image,image_0001,pixel_mm,group\nb,more/b.nii,c.nii,,P1\na,a.png,,0.2,\n"
    )
    first, second = find_images(table, 2)
    assert (first.case, first.images, first.group) == ("a", (tmp_path / "a.png",), "a")
    assert first.columns["pixel_mm"] == "0.2"
    assert (second.case, second.group) == ("b", "P1")
    assert second.images == (tmp_path / "more/b.nii", tmp_path / "c.nii")
    for rows in ("b,", "a,b\na,c\n", "../a,b.nii\n"):
        table.write_text(f"case,image\n{rows}")
        with pytest.raises(DatasetError, match=r"manifest\.csv"):
            find_images(table, 1)


def test_channels_without_a_file_are_missing(tmp_path):
    names = ("a_0000.nii", "a_0002.nii", "b_0001.nii", "c.nii", "d_0000.nii", "d_0001.nii")
    found = {c.case: c.missing for c in find_images(_touch(tmp_path, *names), 3)}
    assert found == {"a": (1,), "b": (0, 2), "c": (), "d": (2,)}
    table = tmp_path / "list.csv"
    table.write_text("case,image,image_0001\na,a.nii,\nb,,b.nii\n")
    assert [c.missing for c in find_images(table, 2)] == [(1,), (0,)]
    assert [c.missing for c in find_images(table, 1)] == [(), (0,)]  # reading counts two files
