"""`predict` writes files in each scan's geometry, one row per scan, and resumes after a kill."""

import os
import shutil
from dataclasses import replace
from functools import partial

import nibabel
import numpy as np
import pytest

import lesionseg
from lesionseg.config import PredictConfig
from lesionseg.core import Candidate, Geometry, Labels
from lesionseg.errors import BundleError, ConfigError, DatasetError, OutputError
from lesionseg.evaluation.drift import N_FIRST
from lesionseg.evaluation.measures import counts_of
from lesionseg.inference.bundle import write_bundle
from lesionseg.io.files import locked_folder
from lesionseg.io.results import folder as folder_module
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import read_csv, read_json
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.pipeline import predict_case
from tests.commands import evaluate, report
from tests.evaluation.test_drift import make_rows, write_rows
from tests.inference.networks import Bright, make_bright
from tests.pipeline.cases import boxes, contents, predict_bright, statuses, write_array

SHAPE = (12, 18, 20)


@pytest.fixture
def scans(tmp_path, rng):
    """Write three scans in three formats, two of them in a subfolder."""
    folder = tmp_path / "scans with = and, [x]"
    image = rng.normal(100, 3, SHAPE).astype(np.float32)
    image += 70 * boxes(SHAPE, (3, 4, 5, 3), (8, 10, 12, 4))
    for name, affine in {
        "a.nii.gz": np.array([[0, 0, -1, 9], [0, 1, 0, -4], [2, 0, 0, 3], [0, 0, 0, 1]]),
        "more/b.mha": np.array([[0, 1.0, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 5], [0, 0, 0, 1]]),
        "more/c.nii": np.array([[0.8, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 1.7, 0], [0, 0, 0, 1]]),
    }.items():
        write_array(folder / name, image, Geometry(SHAPE, affine))
    return folder


@pytest.fixture
def predict_scans(bundle, scans, out):
    """Return a function that predicts the three scans."""
    return partial(predict_bright, bundle, scans, out)


CASES = ("a", "more_b", "more_c")


def test_night_with_a_drift_ends_with_its_sentence_and_status_0(
    predict_scans, out, bundle, scans, tmp_path
):
    (one,) = predict_bright(bundle, scans / "a.nii.gz", tmp_path / "other").rows
    first = make_rows([None] * N_FIRST, one.bundle)
    write_rows(out, [replace(row, acquired="2020-01-01", n_accepted=9) for row in first])
    for number in range(6):
        shutil.copy(scans / "a.nii.gz", scans / f"a{number}.nii.gz")
    outcome = predict_scans()
    assert outcome.exit_status == 0
    assert outcome.summary()[-1] == outcome.drifts[0]
    assert "(n_accepted) is below" in outcome.drifts[0]
    assert outcome.drifts[0] in (out / "predictions.log").read_text()
    again = predict_scans()  # nothing is new
    assert again.drifts == ()


def test_every_scan_gets_its_files_in_its_own_format_and_geometry(predict_scans, out, scans):
    outcome = predict_scans(save_probabilities=True)
    assert outcome.exit_status == 0
    assert statuses(outcome) == dict.fromkeys(CASES, "done")
    found = find_predictions(out)
    for case, suffix in (("a", ".nii.gz"), ("more_b", ".mha"), ("more_c", ".nii")):
        scan = read_volume(scans / f"{case.replace('_', '/')}{suffix}")
        mask = read_volume(out / f"{case}_mask{suffix}")
        np.testing.assert_allclose(mask.geometry.affine, scan.geometry.affine, atol=1e-5)
        assert mask.geometry.shape == SHAPE
        prediction = found[case].read()
        assert [c.id for c in prediction.candidates] == [1, 2]
        assert prediction.labels == {1: "lesion"}
        inside = mask.array[0] > 0
        np.testing.assert_array_equal(inside, prediction.instances > 0)
        with np.load(out / f"{case}_probabilities.npz") as file:
            p = file["probabilities"]
        assert (p.dtype, p.shape) == (np.float16, (1, *SHAPE))
        assert p[0][inside].min() >= 0.35 > p[0][~inside].max()
    assert "3 cases: 3 predicted" in outcome.summary()[0]
    assert f"prediction={out}" in outcome.next
    row = read_csv(out / "predictions.csv")[0]
    assert (row["count_lesion"], row["n_accepted"]) == ("2", "2")


def candidate(label, ml, zone="", accepted=True):
    box = (0.0,) * 3, (1.0,) * 3, (0.0,) * 3
    return Candidate(1, label, 0.9, *box, 3.0, ml, True, accepted, zone=zone)


def test_amounts_by_label_and_zone_count_accepted_candidates():
    some = [candidate(1, 0.5, "left lobe"), candidate(2, 0.25), candidate(2, 1.0, accepted=False)]
    found = counts_of(some, {1: "a", 2: "b"}, ["right"])
    counts = {"count_a": 1, "count_b": 1, "zone_count_right": 0, "zone_count_left_lobe": 1}
    amounts = {"ml_a": 0.5, "ml_b": 0.25, "zone_ml_right": 0.0, "zone_ml_left_lobe": 0.5}
    assert found == {"volume_ml": 0.75, **counts, **amounts}
    assert counts_of([candidate(1, None)], {1: "a"})["volume_ml"] is None
    assert counts_of([], {1: "a"}) == {"volume_ml": 0.0, "count_a": 0, "ml_a": 0.0}


def test_labels_whose_columns_would_agree_have_different_columns():
    some = [candidate(1, 2.0), candidate(2, 4.0), candidate(2, 8.0)]
    assert counts_of(some, {1: "<5 mm", 2: ">5 mm"}) == {
        "volume_ml": 14.0,
        "count__5_mm": 1,
        "ml__5_mm": 2.0,
        "count__5_mm_2": 2,
        "ml__5_mm_2": 12.0,
    }


def test_second_run_keeps_unchanged_cases(predict_scans, out, scans):
    predict_scans()
    before = contents(out)
    (out / "more_b_mask.mha").unlink()
    os.utime(scans / "more" / "c.nii", (1, 1))  # another date, the same content
    expected = {"a": "kept", "more_b": "done", "more_c": "kept"}
    assert statuses(predict_scans()) == expected
    assert contents(out) == before
    again = predict_scans(operating_point="score:0.2")
    assert statuses(again) == dict.fromkeys(CASES, "done")


def test_preview_is_written_where_it_is_missing_and_removed_with_its_case(
    predict_scans, out, monkeypatch
):

    def previews():
        return {file.name.removesuffix("_preview.png") for file in out.glob("*.png")}

    predict_scans()
    before = contents(out)
    assert previews() == set()
    assert statuses(predict_scans(preview=True)) == dict.fromkeys(CASES, "done")
    assert previews() == {*CASES}
    assert contents(out).items() >= before.items()
    # neither setting predicts a complete case again
    for preview in (True, False):
        again = predict_scans(preview=preview)
        assert statuses(again) == dict.fromkeys(CASES, "kept")
        assert previews() == {*CASES}
    (out / "more_b_preview.png").unlink()
    expected = {"a": "kept", "more_b": "done", "more_c": "kept"}
    assert statuses(predict_scans(preview=True)) == expected
    # a picture that cannot be drawn fails its case, and the earlier files stay
    (out / "a_preview.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: 1 / 0)
        assert statuses(predict_scans(preview=True))["a"] == "failed"
    assert (out / "a_candidates.json").is_file()
    assert not [*out.glob(".a*")]
    # results of other settings replace the pictures
    predict_scans(operating_point="score:0.2")
    assert previews() == set()


def test_preview_would_replace_the_mask_of_a_case_with_this_name(predict_scans, scans):
    (scans / "a.nii.gz").rename(scans / "a_preview.nii.gz")
    outcome = predict_scans(names="nnunet", preview=True)
    assert statuses(outcome) == {"a_preview": "failed", "more_b": "done", "more_c": "done"}
    with pytest.raises(ConfigError, match="preview"):
        predict_scans(preview="often")


def test_failed_cases_get_rows_and_leave_no_files(predict_scans, out, scans):
    predict_scans()
    whole = (scans / "a.nii.gz").read_bytes()
    (scans / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    nan = read_volume(scans / "more" / "c.nii")
    nan.array[0, 0, 0, 0] = np.nan
    write_volume(scans / "nan.nii", nan)
    outcome = predict_scans()
    expected = {**dict.fromkeys(CASES, "kept"), "cut": "failed", "nan": "failed"}
    assert (statuses(outcome), outcome.exit_status) == (expected, 3)
    left = {f.name for f in out.iterdir() if f.name.startswith(("cut", "nan", "."))}
    assert left == {"cut_failed.json", "nan_failed.json"}
    messages = [row.message for row in outcome.rows if row.status == "failed"]
    assert all(text and str(scans) not in text for text in messages)


def test_warning_of_the_reader_is_in_the_row_and_in_the_case_file(out, bundle, scans, tmp_path):
    image = nibabel.load(scans / "a.nii.gz")
    image.set_sform(np.diag([-1.0, 1, 1, 1]) @ image.affine, code=1)
    nibabel.save(image, scans / "a.nii.gz")
    (row,) = predict_bright(bundle, scans / "a.nii.gz", out).rows
    assert row.status == "done"
    assert "left and right" in row.warning
    assert str(tmp_path) not in row.warning
    checked = read_json(out / "a_candidates.json")["input_check"]
    assert checked["warning"] == row.warning


def test_missing_bundle_or_input_and_unusable_output_are_refused(out, bundle, tmp_path, scans):
    (tmp_path / "file").touch()
    for paths, error in (
        ((bundle, tmp_path / "none", out), DatasetError),
        ((bundle, tmp_path, tmp_path), ConfigError),
        ((bundle, tmp_path, tmp_path / "file"), ConfigError),
        ((tmp_path / "empty", scans, out), BundleError),
    ):
        with pytest.raises(error):
            predict_bright(*paths)


@pytest.mark.parametrize("source", ["inbox", "inbox/*", "inbox/more", "inbox/more/c.nii"])
def test_output_that_contains_the_input_is_refused(out, bundle, tmp_path, scans, source):
    """Otherwise, the scans of subfolders would be left out as results without a message."""
    scans.rename(tmp_path / "inbox")
    with pytest.raises(ConfigError, match="contains the input"):
        predict_bright(bundle, tmp_path / source, tmp_path)
    assert not list(tmp_path.glob("predictions*"))
    for output in (out, tmp_path / "inbox" / "out"):
        assert predict_bright(bundle, tmp_path / source, output).exit_status == 0


def test_shards_divide_the_cases_and_a_last_call_joins_their_tables(predict_scans, out):
    shares = [predict_scans(num_shards=3, shard_index=i) for i in range(3)]
    assert [list(statuses(share)) for share in shares] == [[], ["more_c"], ["a", "more_b"]]
    assert not (out / "predictions.csv").exists()
    assert statuses(predict_scans()) == dict.fromkeys(CASES, "kept")
    assert [row["case"] for row in read_csv(out / "predictions.csv")] == [*CASES]


def test_runs_that_divide_the_scans_otherwise_do_not_run_together(predict_scans, out, monkeypatch):
    """Each would take the unfinished files of the other one for those of a killed program."""
    monkeypatch.setattr(folder_module, "_WAIT_SECONDS", 0.01)
    second = {"num_shards": 2, "shard_index": 1}
    for lock, others in (
        ("predictions_0_of_2", {}),
        ("predictions_0_of_2", {"num_shards": 3, "shard_index": 0}),
        ("predictions", second),
    ):
        with (
            locked_folder(out, f".{lock}.csv.lock"),
            pytest.raises(OutputError, match="another process is writing"),
        ):
            predict_scans(**others)
    with locked_folder(out, ".predictions_0_of_2.csv.lock"):
        assert predict_scans(**second).exit_status == 0
    (out / ".predictions_0_of_2.csv.lock").touch()  # of a killed process
    assert predict_scans().exit_status == 0


def test_shard_without_scans_does_not_fail(predict_scans, out):
    out.mkdir()  # by another job
    shard = predict_scans(num_shards=4, shard_index=2)
    assert (shard.rows, shard.exit_status) == ((), 0)
    assert not any(line.startswith("Wrote") for line in shard.summary())
    assert "none of 3 scans" in (out / "predictions_2_of_4.log").read_text()


def test_python_returns_the_table_of_a_shard_and_of_a_url(
    out, bundle, scans, tmp_path, monkeypatch
):
    pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_predictor = predict_case.make_predictor
    mine = {"mine": make_bright}
    monkeypatch.setattr(predict_case, "make_predictor", lambda cfg, _: make_predictor(cfg, mine))

    def cases(source, output, **shards):
        table = lesionseg.predict(bundle, source, output, **shards)
        assert {*table.status} <= {"done"}
        return [*table.case]

    assert cases(scans / "a.nii.gz", f"memory://{tmp_path.name}") == ["a"]
    assert cases(scans, out, num_shards=4, shard_index=1) == ["more_b"]
    assert cases(scans, out, num_shards=4, shard_index=2) == []


def test_results_at_a_url_are_kept_by_a_machine_that_downloads_no_mask(
    bundle, scans, tmp_path, monkeypatch
):
    store = pytest.importorskip("fsspec").filesystem("memory")
    url = f"memory://{tmp_path.name}"
    (scans / "cut.nii.gz").write_bytes((scans / "a.nii.gz").read_bytes()[:200])

    def run_on(machine):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        return statuses(predict_bright(bundle, scans, url))

    expected = {"cut": "failed"} | dict.fromkeys(CASES, "done")
    assert run_on("first") == expected
    names = [n for n in store.find(f"/{tmp_path.name}") if not n.endswith((".csv", ".log"))]
    stored = {name: store.cat(name) for name in names}
    assert run_on("second") == expected | dict.fromkeys(CASES, "kept")
    assert not list((tmp_path / "second").rglob("*_mask*"))
    assert {name: store.cat(name) for name in stored} == stored
    store.rm(f"/{tmp_path.name}/a_mask.nii.gz")
    assert run_on("second") == expected | {"a": "done", "more_b": "kept", "more_c": "kept"}
    assert store.exists(f"/{tmp_path.name}/a_mask.nii.gz")


def test_little_memory_changes_no_result(bundle, scans, tmp_path):
    predict_bright(bundle, scans, tmp_path / "plenty", names="nnunet")
    limits = {"max_memory_gb": 1e-6}
    predict_bright(bundle, scans, tmp_path / "little", names="nnunet", inference=limits)
    assert contents(tmp_path / "plenty") == contents(tmp_path / "little")
    assert not (tmp_path / "little" / "a_mask.nii.gz").exists()


@pytest.fixture
def zones(tmp_path, scans):
    """Write zones of the scan `a`: its first lesion is in front, its second in the back."""
    values = np.ones(SHAPE, np.uint8)
    values[:, 9:] = 2
    folder = tmp_path / "zones"
    write_array(folder / "a.nii.gz", values, read_volume(scans / "a.nii.gz").geometry)
    (folder / "names.csv").write_text("value,name\n1,front\n2,back\n")
    return folder


def test_regions_are_painted_and_zones_named(out, plan, scans, zones, tmp_path):
    labels = Labels((1, 2), ("whole", "core"), regions=((1, 2), (2,)))
    mine = plan.with_(architecture=replace(plan.architecture, name="mine"), labels=labels)
    write_bundle(tmp_path / "bundle", Bright(n_labels=2), mine, "")
    own = {"architectures": {"mine": lambda _: Bright(n_labels=2)}, "zones": zones}
    paths = tmp_path / "bundle", scans / "a.nii.gz", out
    amounts = predict_bright(*paths, **own).rows[0].amounts
    assert amounts["zone_count_front"] == amounts["zone_count_back"] == 1
    assert (out / "a_regions.nii.gz").is_file()
    (zones / "names.csv").write_text("value,name\n1,front\n2,rear\n")
    assert predict_bright(*paths, **own).rows[0].amounts["zone_count_rear"] == 1


def test_candidates_outside_the_kept_zones_are_not_accepted(bundle, scans, zones, out, tmp_path):
    scan, scores = scans / "a.nii.gz", tmp_path / "scores"
    whole = predict_bright(bundle, scan, out, zones=zones).rows[0]
    assert (whole.n_candidates, whole.n_accepted, whole.warning) == (2, 2, "")
    references = tmp_path / "references"
    references.mkdir()
    shutil.copy(out / "a_mask.nii.gz", references / "a.nii.gz")  # both lesions

    back = {"keep_zones": ["back"]}
    (row,) = predict_bright(bundle, scan, out, zones=zones, inference=back).rows
    assert (row.status, row.n_candidates, row.n_accepted) == ("done", 2, 1)
    assert row.warning.startswith("1 candidate outside the kept zones")
    assert (row.amounts["zone_count_front"], row.amounts["zone_count_back"]) == (0, 1)
    prediction = find_predictions(out)["a"].read()
    assert prediction.n_outside == 1
    (kept,) = (c for c in prediction.candidates if c.accepted)
    assert kept.zone == "back"
    mask = read_volume(out / "a_mask.nii.gz").array[0]
    np.testing.assert_array_equal(mask > 0, prediction.instances == kept.id)
    assert row.volume_ml == pytest.approx(kept.volume_ml)
    assert row.warning in (out / "predictions.log").read_text()
    assert read_csv(out / "predictions.csv")[0]["warning"] == row.warning

    # another operating point ignores the zones
    for settings, n_outside in (({}, 1), ({"operating_point": "score:0.1"}, 0)):
        evaluate(references, out, scores, replicates=0, **settings)
        assert read_csv(scores / "cases.csv")[0]["n_outside"] == str(n_outside)
        page = report(scores, tmp_path).page.read_text("utf-8")
        assert ("1 marking outside the kept zones" in page) == bool(n_outside)


def test_kept_zones_need_their_names_and_masks(predict_scans, zones):
    back = {"keep_zones": ["back"]}
    with pytest.raises(ConfigError, match="zones=FOLDER"):
        predict_scans(inference=back)
    with pytest.raises(ConfigError, match=r"rear.*front, back"):
        predict_scans(zones=zones, inference={"keep_zones": ["back", "rear"]})
    outcome = predict_scans(zones=zones, inference=back)
    assert statuses(outcome) == {"a": "done", "more_b": "failed", "more_c": "failed"}
    assert "keep_zones" in outcome.rows[1].message
    (zones / "names.csv").unlink()
    with pytest.raises(ConfigError, match="values of the masks"):
        predict_scans(zones=zones, inference=back)
    row = predict_scans(zones=zones, inference={"keep_zones": [1]}).rows[0]
    assert row.amounts["zone_count_1"] == row.n_accepted == 1


def test_workers_of_a_cluster_get_absolute_paths(tmp_path, monkeypatch):
    """They run in another folder. A relative file would count there as the folder of an archive."""
    monkeypatch.chdir(tmp_path)
    for given, expected in (
        ("scans/a.nii", f"{tmp_path}/scans/a.nii"),
        ("scans/*/FLAIR*", f"{tmp_path}/scans/*/FLAIR*"),
        ("s3://bucket/scans", "s3://bucket/scans"),
        ("hf://user/model", "hf://user/model"),
    ):
        cfg = PredictConfig.of(bundle=given, input=given, output="out", zones="zones")
        made = cfg.with_absolute_paths()
        assert (made.bundle, made.input) == ((expected,), expected)
        assert made.zones == f"{tmp_path}/zones"


@pytest.mark.slow
def test_cluster_writes_the_same_files_as_one_machine(cluster, bundle, scans, tmp_path):
    (scans / "bad.nii.gz").write_text("no image")
    here = predict_bright(bundle, scans, tmp_path / "here")
    there = predict_bright(bundle, scans, tmp_path / "there", engine="ray")
    assert statuses(there) == statuses(here)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.slow
def test_only_the_case_that_kills_its_workers_fails(out, cluster, bundle, scans):
    here = os.getpid()

    class Dying(Bright):
        def forward(self, image):
            if float(image.max()) > 25 and os.getpid() != here:
                os._exit(1)
            return super().forward(image)

    scan = read_volume(scans / "a.nii.gz")
    write_volume(scans / "d.nii", scan)
    scan.array[0, 0, 0, 0] = 1e6
    write_volume(scans / "a.nii.gz", scan)
    dying = {"mine": lambda _: Dying()}
    paths = bundle, scans, out
    outcome = predict_bright(*paths, engine="ray", architectures=dying)
    assert statuses(outcome) == {"a": "failed", "d": "done", "more_b": "done", "more_c": "done"}


def test_several_bundles_state_their_disagreement_in_table_and_case_file(
    scans, bundle, plan, tmp_path
):
    second = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "second", Bright(level=9.0), second, "")  # it marks nothing
    for bundles, expected in ([bundle], ""), ([bundle, tmp_path / "second"], "1.0"):
        out = tmp_path / f"out{len(bundles)}"
        predict_bright([*map(str, bundles)], scans / "a.nii.gz", out)
        stated = read_json(out / "a_candidates.json")["row"].get("disagreement", "")
        assert read_csv(out / "predictions.csv")[0]["disagreement"] == str(stated) == expected
