"""Results in a folder: each case has either all files of one scan or none."""

import json
import os
import sys
from contextlib import suppress

import pytest

from lesionseg.errors import ConflictError, DatasetError, OutputError
from lesionseg.io.contents import content_digest, file_state
from lesionseg.io.files import digest_of
from lesionseg.io.remote import download, upload
from lesionseg.io.results import folder as folder_module
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.row import CaseRow


def scan(digest, *uids):
    """Return the row of a scan of the case `a` with UIDs of study, series and instance."""
    names = ("study_uid", "series_uid", "instance_uid")
    return CaseRow("a", digest=digest, **dict(zip(names, uids, strict=False)))


def source_of(row):
    """Return what a candidate file states of the scan."""
    names = ("digest", "study_uid", "series_uid", "instance_uid")
    return {name: getattr(row, name) for name in names}


ONE = scan("aa")
TWO = scan("bb")


def write_results(folder, content="1", mask=None, *, case="a", source=ONE):
    """Write files for a case with the names that `write_prediction` uses.

    `mask` is the file of the mask with the names of nnU-Net, which has no file of instances.
    """
    if not folder.exists():
        folder.mkdir()
    for name in [mask] if mask else [f"{case}_mask.nii", f"{case}_instances.nii"]:
        (folder / name).write_text(content)
    candidates = {"candidates": [], "source": source_of(source)}
    if mask:
        candidates["names"] = "nnunet"
    (folder / f"{case}_candidates.json").write_text(json.dumps(candidates))


def read_texts(folder):
    return {f.name: f.read_text() for f in folder.iterdir() if f.suffix == ".nii"}


def test_only_results_of_the_same_content_may_be_replaced(tmp_path):
    write_results(tmp_path)
    results = PredictionFolder(tmp_path)
    results.claim("a", ONE)
    results.claim("b", TWO)
    with pytest.raises(ConflictError, match="overwrite=true"):
        results.claim("a", TWO)
    results.claim("a", TWO, overwrite=True)


@pytest.mark.parametrize(
    ("recorded", "now", "is_same"),
    [
        (scan("aa", "1", "1.1"), scan("bb", "1", "1.1"), True),
        (scan("aa", "1", "1.1"), scan("bb", "1", "1.2"), False),
        # two films of one series
        (scan("aa", "1", "1.1", "1.1.1"), scan("bb", "1", "1.1", "1.1.2"), False),
        (scan("aa", "1", "1.1", "1.1.1"), scan("bb", "1", "1.1", "1.1.1"), True),
        (scan("aa", "1", "1.1"), scan("bb", "1", "1.1", "1.1.1"), False),
        (scan("aa"), scan("bb"), False),
        (scan("aa", "1", "1.1"), scan("aa"), True),
        (scan("aa", "1", ""), scan("bb", "1", ""), False),
    ],
)
def test_changed_scan_is_recognised_by_its_uids(tmp_path, recorded, now, is_same):
    write_results(tmp_path, source=recorded)
    assert recorded.is_of_same_scan(now) == now.is_of_same_scan(recorded) == is_same
    if is_same:
        PredictionFolder(tmp_path).claim("a", now)
        return
    both = recorded.instance_uid and now.instance_uid
    with pytest.raises(ConflictError, match=r"1\.1\.1, but .*1\.1\.2" if both else None):
        PredictionFolder(tmp_path).claim("a", now)


@pytest.mark.parametrize(
    "name",
    [
        "a_mask.nii.gz",
        "a_mask.png",
        "a_instances.mha",
        "a_regions.nrrd",
        "a_preview.png",
        "a_probabilities.npz",
        "a_seg.dcm",
        "a_sr.dcm",
        "a_candidates.json",
    ],
)
def test_result_without_a_source_is_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConflictError, match=name):
        PredictionFolder(tmp_path).claim("a", ONE)
    PredictionFolder(tmp_path).claim("a", ONE, overwrite=True)


def write_bids_results(folder, mask, source):
    """Write the files of the case `sub-1_FLAIR` with the names that `names=bids` uses."""
    place = folder / "sub-1" / "anat"
    place.mkdir(parents=True)
    stem = "sub-1_space-orig_label-lesion_desc-FLAIR_mask"
    (place / f"{stem}.nii.gz").write_text(mask)
    (place / f"{stem}.json").write_text("{}")
    content = {"candidates": [], "source": source_of(source), "names": "bids"}
    (folder / "sub-1_FLAIR_candidates.json").write_text(json.dumps(content))


def test_names_of_bids_replace_own_masks_only(tmp_path):
    write_bids_results(tmp_path, "old", ONE)
    (tmp_path / "sub-1" / "anat" / "sub-1_space-orig_label-lesion_desc-T1w_mask.json").touch()
    results = PredictionFolder(tmp_path, names="bids")
    with pytest.raises(ConflictError, match="desc-T1w_mask"):
        results.claim("sub-1_T1w", TWO)
    with pytest.raises(ConflictError, match="another scan"):
        results.claim("sub-1_FLAIR", TWO)
    results.claim("sub-1_FLAIR", ONE)
    with results.write_case("sub-1_FLAIR") as part:
        write_bids_results(part, "new", ONE)
    (mask,) = tmp_path.rglob("*.nii.gz")
    assert (mask.parent, mask.read_text()) == (tmp_path / "sub-1" / "anat", "new")
    assert not [*tmp_path.glob(".sub*")]


def test_mask_in_the_folder_of_a_subject_is_completed_after_a_kill_and_removed_with_its_case(
    tmp_path,
):
    (tmp_path / ".sub-1_FLAIR.moving").mkdir()
    write_bids_results(tmp_path / ".sub-1_FLAIR.moving", "new", ONE)
    results = PredictionFolder(tmp_path)
    assert results.recover_all() == ["sub-1_FLAIR"]
    assert [file.read_text() for file in tmp_path.rglob("*.nii.gz")] == ["new"]
    with results.write_case("sub-1_FLAIR") as part:
        write_results(part, case="sub-1_FLAIR")
    assert not [*tmp_path.rglob("*.nii.gz")]


def test_hidden_file_of_a_file_system_is_no_case(tmp_path):
    write_results(tmp_path)
    write_results(tmp_path, case="._a")  # macOS writes such files to disks of other systems
    assert PredictionFolder(tmp_path).cases() == ["a"]


@pytest.mark.parametrize("name", ["a.nii.gz", "a.npz", "a.pkl"])
def test_names_of_nnunet_do_not_replace_a_file_next_to_other_results(tmp_path, name):
    write_results(tmp_path)
    file = tmp_path / name
    file.write_text("someone's")
    PredictionFolder(tmp_path).claim("a", ONE)
    results = PredictionFolder(tmp_path, names="nnunet")
    with pytest.raises(ConflictError, match=name):
        results.claim("a", ONE)
    write_results(tmp_path / ".a.part")  # of a killed run with the usual names
    assert PredictionFolder(tmp_path, names="nnunet").recover_all() == ["a"]
    assert file.read_text() == "someone's"
    results.claim("a", ONE, overwrite=True)
    with results.write_case("a") as part:
        write_results(part, "new", name)
    assert file.read_text() == "new"
    assert not (tmp_path / "a_mask.nii").exists()


@pytest.mark.parametrize("names", ["lesionseg", "nnunet"])
def test_own_files_with_names_of_nnunet_are_replaced(tmp_path, names):
    write_results(tmp_path, "old", "a.nii.gz")
    results = PredictionFolder(tmp_path, names=names)
    results.claim("a", ONE)
    with results.write_case("a") as part:
        write_results(part)
    assert not (tmp_path / "a.nii.gz").exists()


def test_results_with_names_of_nnunet_are_completed_after_a_kill(tmp_path):
    """The killed program had removed the old candidate file, but not yet the old mask."""
    (tmp_path / "a.nii.gz").write_text("old")
    write_results(tmp_path / ".a.part", "new", "a.nii.gz")
    assert PredictionFolder(tmp_path, names="nnunet").recover_all() == ["a"]
    assert (tmp_path / "a.nii.gz").read_text() == "new"


def test_ambiguous_id_is_an_error_with_names_of_nnunet(tmp_path):
    # a_instances.nii.gz would be the mask of one case and the instances of another
    for case in ("b_instances", "b_mask", "b_regions", "b_candidates"):
        with pytest.raises(DatasetError):
            PredictionFolder(tmp_path, names="nnunet").claim(case, ONE)
        PredictionFolder(tmp_path).claim(case, ONE)


def test_id_that_differs_only_in_case_or_accent_encoding_is_a_conflict(tmp_path):
    write_results(tmp_path, case="P1é")
    results = PredictionFolder(tmp_path)
    for case in ("p1é", "P1É", "P1e\u0301"):
        with pytest.raises(ConflictError, match="P1é"):
            results.claim(case, TWO)
    results.claim("P1", TWO)


def test_new_files_replace_all_old_files(tmp_path):
    write_results(tmp_path, "old")
    (tmp_path / "a_regions.nrrd").write_text("old")
    (tmp_path / "a_b_mask.nii").write_text("another case's")
    results = PredictionFolder(tmp_path)
    with results.write_case("a") as part:
        write_results(part, "new")
        assert (tmp_path / "a_mask.nii").read_text() == "old"
    expected = {"a_mask.nii": "new", "a_instances.nii": "new", "a_b_mask.nii": "another case's"}
    assert read_texts(tmp_path) == expected
    assert sorted(results.files("a")) == ["a_candidates.json", "a_instances.nii", "a_mask.nii"]
    assert not [f for f in tmp_path.iterdir() if f.name.startswith((".", "a_regions"))]


def test_error_while_writing_keeps_the_old_files(tmp_path):
    write_results(tmp_path, "old")
    with suppress(ZeroDivisionError), PredictionFolder(tmp_path).write_case("a") as part:
        write_results(part, "new")
        raise ZeroDivisionError
    assert read_texts(tmp_path) == {"a_mask.nii": "old", "a_instances.nii": "old"}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("killed_at", range(12))
def test_case_has_its_old_or_its_new_files_after_a_kill_at_any_moment(
    tmp_path, monkeypatch, killed_at
):
    """Kill the program after its first change of a name or folder, its second one, and so on."""
    write_results(tmp_path, "old")
    n_changes = 0

    def add_kill(change):
        def change_or_kill(*args, **options):
            nonlocal n_changes
            if n_changes == killed_at:
                raise KeyboardInterrupt
            n_changes += 1
            return change(*args, **options)

        return change_or_kill

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, add_kill(getattr(os, name)))
        with suppress(KeyboardInterrupt), PredictionFolder(tmp_path).write_case("a") as part:
            write_results(part, "new")
    again = PredictionFolder(tmp_path)
    again.recover_all()
    expected = "new" if killed_at else "old"  # the first change makes the folder of the new files
    assert read_texts(tmp_path) == {"a_mask.nii": expected, "a_instances.nii": expected}
    assert len(list(tmp_path.iterdir())) == 3
    again.claim("a", ONE)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Return the folder that is the store, its URL, and the local copy of the results."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"file://{tmp_path / 'store'}"
    return tmp_path / "store", url, download(url, new=True)


NAMES = ["a_candidates.json", "a_instances.nii", "a_mask.nii"]


@pytest.mark.parametrize("n_uploaded", [0, 1])
def test_upload_that_failed_is_repeated_by_the_next_run(store, monkeypatch, n_uploaded):
    folder, url, copy = store

    def upload_some(paths, *args):
        upload(list(paths)[:n_uploaded], *args)
        raise OutputError("The network is down.")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "upload", upload_some)
        with pytest.raises(OutputError), PredictionFolder(copy, url).write_case("a") as part:
            write_results(part)
    assert len([*folder.glob("*")]) == n_uploaded
    assert PredictionFolder(copy, url).recover_all() == ["a"]
    assert sorted(file.name for file in folder.iterdir()) == NAMES
    assert {*NAMES} <= {file.name for file in copy.iterdir()}


def test_candidate_file_in_the_store_means_that_the_case_is_complete(store, monkeypatch):
    folder, url, copy = store
    states = []

    def upload_one_by_one(paths, *args):
        for path in paths:
            upload([path], *args)
            states.append({file.name: file.read_text() for file in folder.iterdir()})

    monkeypatch.setattr(folder_module, "upload", upload_one_by_one)
    results = PredictionFolder(copy, url)
    for content in ("old", "new"):
        with results.write_case("a") as part:
            write_results(part, content, source=scan(content))
    complete = [state for state in states if "a_candidates.json" in state]
    assert len(complete) == 2
    for state, content in zip(complete, ("old", "new"), strict=True):
        assert f'"{content}"' in state["a_candidates.json"]
        assert (state["a_mask.nii"], state["a_instances.nii"]) == (content, content)


def test_new_candidate_file_is_kept_if_its_upload_failed(store, monkeypatch):
    """The store lacks the file, because the earlier one was removed before the upload."""
    folder, url, copy = store
    with PredictionFolder(copy, url).write_case("a") as part:
        write_results(part, "old")
    copy = download(url)

    def fail_to_upload(paths, *args):
        paths = [*paths]
        if any(path.is_file() for path in paths):
            raise OutputError("The network is down.")
        upload(paths, *args)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "upload", fail_to_upload)
        with pytest.raises(OutputError), PredictionFolder(copy, url).write_case("a") as part:
            write_results(part, "new")
    assert not (folder / "a_candidates.json").exists()
    assert PredictionFolder(download(url), url).recover_all() == ["a"]
    assert read_texts(folder) == {"a_mask.nii": "new", "a_instances.nii": "new"}
    assert (folder / "a_candidates.json").is_file()


def keep_first(folder, url="", n=2, **models):
    """Keep the first scans of models, each given as a text with a case id per letter."""
    rows = {model: [CaseRow(case) for case in cases] for model, cases in models.items()}
    return PredictionFolder(folder, url).keep_first(n, rows)


def test_first_scans_of_a_model_stay_those_of_the_first_call(tmp_path):
    assert keep_first(tmp_path, m1="abc", m2="d") == {"m1": ["a", "b"]}
    both = {"m1": ["a", "b"], "m2": ["d", "e"]}
    assert keep_first(tmp_path, m1="cba", m2="def") == both
    assert keep_first(tmp_path) == both


def test_first_scans_are_stored_with_the_results_at_a_url(tmp_path):
    url = f"file://{(tmp_path / 'store').as_posix()}"
    keep_first(tmp_path / "copy", url, m1="ab")
    assert keep_first(tmp_path / "store") == {"m1": ["a", "b"]}


@pytest.mark.parametrize("text", ["{", "[1]", '{"m1": "a"}'])
def test_damaged_file_of_the_first_scans_is_replaced(tmp_path, text):
    (tmp_path / "first_scans.json").write_text(text)
    keep_first(tmp_path, m1="bc")
    assert keep_first(tmp_path) == {"m1": ["b", "c"]}


def test_folder_that_cannot_be_written_keeps_no_first_scans(tmp_path):
    (tmp_path / "first_scans.json").mkdir()
    assert keep_first(tmp_path, m1="ab") == {"m1": ["a", "b"]}


def test_incomplete_files_are_removed(tmp_path):
    (tmp_path / ".a.part").mkdir()
    (tmp_path / ".a.part" / "a_mask.nii").write_text("half")
    (tmp_path / ".0a1b2c3d-a_failed.json").write_text("[")
    (tmp_path / ".0a1b2c3d-first_scans.json").write_text("{")
    assert PredictionFolder(tmp_path).recover_all() == []
    assert list(tmp_path.iterdir()) == []


def test_digest_depends_on_content_and_order_of_channels(tmp_path):
    a, b, c, d = (tmp_path / name for name in "abcd")
    for file, text in ((a, "1"), (b, "2"), (c, "1"), (d, "2")):
        file.write_text(text)
    # sha256sum of a file that contains "1"
    assert content_digest([[a]]) == digest_of(c)
    assert digest_of(a)[:8] == "6b86b273"
    assert content_digest([[a, b]]) == content_digest([[d, c]]) != content_digest([[a]])
    assert content_digest([[a], [b]]) != content_digest([[b], [a]])


def test_state_changes_with_a_file_of_the_same_name_size_and_date(tmp_path):
    file = tmp_path / "a.nii"
    states = []
    for text in "12":
        (tmp_path / "b.nii").write_text(text)
        (tmp_path / "b.nii").replace(file)
        os.utime(file, ns=(10**18, 10**18))
        states.append(file_state([file]))
    assert states[0] != states[1] == file_state([file])


@pytest.mark.skipif(sys.platform == "win32", reason="links need permissions on Windows")
@pytest.mark.parametrize("ending", ["moving", "part"])
def test_files_behind_a_link_are_not_moved(tmp_path, ending):
    """A link under the name of an unfinished case may lead to any folder of the user."""
    other = tmp_path / "documents"
    write_results(other)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / f".a.{ending}").symlink_to(other)
    assert PredictionFolder(folder).recover_all() == []
    assert sorted(path.name for path in other.iterdir()) == NAMES
    assert not [*folder.iterdir()]
