"""Whatever goes wrong at whichever step of a case: that case fails, and the others are the same."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from lesionseg.core import CaseFiles, Geometry, Volume
from lesionseg.errors import ConfigError, DatasetError, OutputError, ReadError
from lesionseg.inference import decision, open_scan
from lesionseg.inference.decision import CaseDecision, Inferred
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.open_scan import ScanOpener
from lesionseg.inference.sliding.scan_tiles import ScanTiles
from lesionseg.io import volumes
from lesionseg.io.case_ids import MAX_ID_BYTES
from lesionseg.io.folder_locks import locked_folder
from lesionseg.io.formats import decoder
from lesionseg.io.predictions import find_predictions
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.pipeline.predict import case_writing as predict_write
from lesionseg.pipeline.predict import predict_job
from lesionseg.pipeline.predict import predictions_table as predict_table
from lesionseg.pipeline.predict.case_writing import CaseOutputs
from lesionseg.pipeline.predict.predictions_table import PredictOutcome
from lesionseg.pipeline.predict.recipe import predict
from lesionseg.plan.plan import Plan
from tests.inference.networks import Bright

SHAPE = (12, 18, 20)
MINE = {"mine": lambda _: Bright()}
ERRORS: tuple[Callable[[], Exception], ...] = (
    MemoryError,
    lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    lambda: OSError(errno.EROFS, os.strerror(errno.EROFS)),
    lambda: RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    lambda: ReadError("The file is odd.", where="b.nii.gz"),
)
# what each case passes once, in the order of cases
STEPS: tuple[tuple[object, str], ...] = (
    (predict_job, "_content_digest"),
    (CaseOutputs, "clear"),
    (predict_job, "read_geometry"),
    (predict_job, "needed_bytes"),
    (ScanOpener, "open"),
    (ScanOpener, "read"),
    (open_scan, "prepare_image"),
    (ScanTiles, "__init__"),
    (ScanTiles, "tile"),
    (ScanTiles, "put"),
    (CaseDecision, "__call__"),
    (Inferred, "restored"),
    (decision, "collect_above"),
    (predict_write, "write_volume"),
    (CaseDecision, "_boxes"),
    (decision, "find_by_plan"),
    (predict_write, "write_dicom"),
    (predict_write, "write_prediction"),
    (predict_job._JobSteps, "_row"),
)
each_step = pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])


@pytest.fixture
def scans(tmp_path: Path, rng: np.random.Generator) -> Path:
    """The scans a, b and c."""
    geometry = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0))
    for case in "abc":
        image = rng.normal(100, 3, SHAPE).astype(np.float32)
        image[3:6, 4:8, 5:9] += 60
        write_volume(tmp_path / "scans" / f"{case}.nii.gz", Volume(image[None], geometry))
    return tmp_path / "scans"


def _run(bundle: Path, source: Path, output: Path, **options: Any) -> PredictOutcome:
    given = {"architectures": MINE, "device": "cpu", "save_probabilities": "uint8", **options}
    return predict(bundle, source, output, **given)


def _content(output: Path) -> dict[str, bytes]:
    """The results by name."""
    files = [p for p in output.rglob("*") if p.is_file() and p.suffix != ".csv"]
    return {p.name: p.read_bytes() for p in files}


def _without_b(content: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in content.items() if not name.startswith("b_")}


def _statuses(rows: PredictOutcome) -> dict[str, str]:
    return {row.case: row.status for row in rows}


def _as_if_dicom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_write, "is_dicom_image", lambda _: True)
    monkeypatch.setattr(predict_write, "write_dicom", lambda *_: "")
    # the fake writes none of the files by which a case counts as done
    monkeypatch.setattr(predict_write, "dicom_paths", lambda *_, **__: [])


def _raise_at_the_second(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException
) -> None:
    """Raise at the second call, of a slide's methods at every call of the second slide."""
    original, seen = getattr(owner, name), []

    def failing(*args: Any, **options: Any) -> Any:
        key = args[0] if name in ("tile", "put") else object()
        if not any(key is other for other in seen):
            seen.append(key)
        if len(seen) >= 2 and key is seen[1]:
            raise error
        return original(*args, **options)

    monkeypatch.setattr(owner, name, failing)


@each_step
def test_h1_one_case_fails_at_any_step_and_the_others_are_the_same(
    bundle: Path, scans: Path, tmp_path: Path, owner: Any, name: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _as_if_dicom(patch)
        _run(bundle, scans, tmp_path / "clean")
    clean = _without_b(_content(tmp_path / "clean"))
    assert len(clean) == 8
    for number, error in enumerate(ERRORS):
        output = tmp_path / f"out{number}"
        with pytest.MonkeyPatch.context() as patch:
            _as_if_dicom(patch)
            _raise_at_the_second(patch, owner, name, error())
            rows = _run(bundle, scans, output)
        assert _statuses(rows) == {"a": "done", "b": "failed", "c": "done"}
        assert _content(output) == clean
        assert rows.exit_status == 1
        assert rows[1].message
        with pytest.MonkeyPatch.context() as patch:
            _as_if_dicom(patch)
            again = _run(bundle, scans, output)
        assert _statuses(again) == {"a": "kept", "b": "done", "c": "kept"}


@each_step
def test_ctrl_c_ends_the_run_at_any_step(
    bundle: Path,
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
) -> None:
    _as_if_dicom(monkeypatch)
    _raise_at_the_second(monkeypatch, owner, name, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        _run(bundle, scans, tmp_path / "out")


def test_h2_one_case_fails_whose_results_cannot_be_removed(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = CaseOutputs.clear

    def stubborn(self: CaseOutputs, files: Any, plan: Plan) -> None:
        if files.case == "b":
            raise OSError(errno.EPERM, "no")
        clear(self, files, plan)

    monkeypatch.setattr(CaseOutputs, "clear", stubborn)
    rows = _run(bundle, scans, tmp_path / "out")
    assert _statuses(rows) == {"a": "done", "b": "failed", "c": "done"}


def test_what_can_be_removed_of_a_failed_case_is(bundle: Path, scans: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    _run(bundle, scans, output)
    (output / "b_mask.nii.gz").unlink()
    (output / "b_mask.nii.gz").mkdir()
    (output / ".0123abcd-b_instances.nii.gz").touch()
    rows = _run(bundle, scans, output)
    assert _statuses(rows) == {"a": "kept", "b": "failed", "c": "kept"}
    assert "An earlier result cannot be removed" in rows[1].message
    assert [p.name for p in output.glob("*b_*")] == ["b_mask.nii.gz"]


class _Broken(Bright):
    """A network that fails where a voxel is far brighter than any lesion."""

    def forward(self, x: Tensor) -> Any:
        if bool((x > 50).any()):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_h1_one_case_fails_in_the_network_also_where_batches_are_shared(
    bundle: Path, scans: Path, tmp_path: Path, batch_size: int
) -> None:
    options = {
        "inference": InferenceSettings(batch_size=batch_size),
        "architectures": {"mine": lambda _: _Broken()},
    }
    _run(bundle, scans, tmp_path / "clean", **options)
    odd = read_volume(scans / "b.nii.gz")
    odd.array[0, 6, 6, 6] = 1e6
    write_volume(scans / "b.nii.gz", odd)
    rows = _run(bundle, scans, tmp_path / "out", **options)
    assert _statuses(rows) == {"a": "done", "b": "failed", "c": "done"}
    assert "CUDA out of memory" in rows[1].message
    assert _content(tmp_path / "out") == _without_b(_content(tmp_path / "clean"))


@pytest.mark.parametrize("error", ERRORS)
def test_a_table_that_cannot_be_written_for_a_while_is_whole_in_the_end(
    bundle: Path,
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], Exception],
) -> None:
    write, n_calls = predict_table.write_table, [0]

    def full(*args: Any) -> None:
        n_calls[0] += 1
        if n_calls[0] == 1:
            raise error()
        write(*args)

    monkeypatch.setattr(predict_table, "write_table", full)
    rows = _run(bundle, scans, tmp_path / "out")
    assert _statuses(rows) == {"a": "done", "b": "done", "c": "done"}
    again = _run(bundle, scans, tmp_path / "out")
    assert _statuses(again) == {"a": "kept", "b": "kept", "c": "kept"}


def test_a_table_that_can_never_be_written_is_told_after_the_last_case(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "predictions.csv.d").mkdir(parents=True)
    (tmp_path / "out" / "predictions.csv").mkdir()
    with pytest.raises((OutputError, ReadError), match=r"predictions\.csv"):
        _run(bundle, scans, tmp_path / "out")


def test_h2_an_output_that_is_a_file_is_refused(bundle: Path, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match=r"output is a file.*out"):
        _run(bundle, scans, tmp_path / "out")


def test_h2_a_scan_list_with_ids_and_paths_that_cannot_be(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    ids = ("x" * (MAX_ID_BYTES + 1), "n\0", "..", "turn\u202ed", ".hidden", "b\\c")
    (scans / "circle.nii.gz").symlink_to("circle.nii.gz")
    images = {"long": "l" * 300 + ".nii.gz", "nul": "n\0.nii.gz", "circle": "circle.nii.gz"}
    lines = [f"{case},{case}.nii.gz" for case in "abc"]
    lines += [f"{case},a.nii.gz" for case in ids] + [f"{k},{v}" for k, v in images.items()]
    (scans / "list.csv").write_text("\n".join(["case,image", *lines]) + "\n")
    _run(bundle, scans, tmp_path / "clean")
    rows = _run(bundle, scans / "list.csv", tmp_path / "out")
    done = {case for case, status in _statuses(rows).items() if status == "done"}
    assert done == {"a", "b", "c"}
    assert len(rows) == len(lines)
    assert all(row.case.isprintable() for row in rows)
    told = [row.message for row in rows if "cannot be a file name" in row.message]
    assert len(told) == len(ids)
    assert _content(tmp_path / "out") == _content(tmp_path / "clean")
    assert sorted(find_predictions(tmp_path / "out")) == ["a", "b", "c"]
    named = _run(bundle, scans / "list.csv", tmp_path / "named", identifiers=True)
    assert len(named) == len(lines)


def test_no_id_removes_what_lies_elsewhere(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "outside_mask.nii.gz").touch()
    (tmp_path / "out").mkdir()
    files = CaseFiles("../outside", (tmp_path / "a.nii.gz",))
    with pytest.raises(DatasetError, match="cannot be a file name"):
        CaseOutputs(tmp_path / "out").clear(files, plan)
    assert (tmp_path / "outside_mask.nii.gz").exists()


def test_the_longest_id_gets_all_its_files(bundle: Path, scans: Path, tmp_path: Path) -> None:
    longest = "扫" * (MAX_ID_BYTES // 3) + "xx"
    assert len(longest.encode()) == MAX_ID_BYTES
    (scans / "list.csv").write_text(f"case,image\n{longest},a.nii.gz\n", encoding="utf-8")
    (row,) = _run(bundle, scans / "list.csv", tmp_path / "out")
    assert (row.case, row.status) == (longest, "done")
    assert list(find_predictions(tmp_path / "out")) == [longest]
    (row,) = _run(bundle, scans / "list.csv", tmp_path / "out")
    assert row.status == "kept"


def test_a_scan_whose_name_is_no_unicode_fails_alone(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    try:
        (scans / "b.nii.gz").rename(scans / "b\udcff.nii.gz")
    except OSError:
        pytest.skip("this disk takes no such name")
    for identifiers in (False, True):
        rows = _run(bundle, scans, tmp_path / f"out{identifiers}", identifiers=identifiers)
        assert _statuses(rows) == {"a": "done", "'b\\udcff'": "failed", "c": "done"}


def test_c1_a_crash_of_the_reader_fails_one_case_which_is_left_out_from_then_on(
    bundle: Path, scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scan = read_volume(scans / "b.nii.gz")
    (scans / "b.nii.gz").unlink()
    write_volume(scans / "b.mha", scan)

    def crashing(read: Callable[..., Any], path: Path, *settings: Any) -> Any:
        return decoder.decode(os._exit, 5) if path.name == "b.mha" else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volumes, "decode", crashing)
        rows = _run(bundle, scans, tmp_path / "out")
    assert _statuses(rows) == {"a": "done", "b": "failed", "c": "done"}
    assert rows[1].message.startswith("The reader crashed on this file.")
    again = _run(bundle, scans, tmp_path / "out")
    assert _statuses(again) == {"a": "kept", "b": "failed", "c": "kept"}
    assert "Case b is left out: the same file crashed the reader before." in caplog.text
    write_volume(scans / "b.mha", Volume(scan.array + 1, scan.geometry))
    assert _statuses(_run(bundle, scans, tmp_path / "out"))["b"] == "done"


def test_m3_a_folder_that_another_process_writes_into_is_refused(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    with (
        locked_folder(tmp_path / "out", ".predictions.csv.lock"),
        pytest.raises(OutputError, match="Another process is writing into this folder"),
    ):
        _run(bundle, scans, tmp_path / "out")
    _run(bundle, scans, tmp_path / "out")
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir() if p.is_file()}
    assert modes == {0o600}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
