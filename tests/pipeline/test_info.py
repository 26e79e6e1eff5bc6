"""`info`: what a model needs, and what a folder contains."""

import json
import shlex
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from lesionseg.cli import compose, main
from lesionseg.config import COMMANDS
from lesionseg.core import Geometry, OperatingPoint, Selection
from lesionseg.errors import DatasetError
from lesionseg.inference.bundle import bundle_digest, read_bundle, write_bundle
from lesionseg.inference.model_card import model_card
from lesionseg.io.text import read_json, write_json
from lesionseg.models.build import build_network
from lesionseg.pipeline.info import info
from tests.flow.cases import write_raw
from tests.inference.nnunet.small_models import SmallModel
from tests.pipeline.cases import write_array

POINT = OperatingPoint("fp_per_case:1", 0.25, "validation", 0.9, 0.75, n_cases=5, n_patients=4)
FACTS = {"date": "2026-01-31", "training_patients": 12, "dataset": "scans: new"}


def ask(**settings):
    return info(COMMANDS["info"].of(**settings))


@pytest.fixture
def run(tmp_path, plan):
    """Write the bundle of a run, whose operating point was chosen on four patients."""
    selection = Selection((POINT, OperatingPoint("best_f1", 0.5)), is_mirrored=True)
    plan = plan.with_(reasons={"spacing_mm": "the median spacing"})
    card = model_card(plan, selection, provenance=FACTS)
    network = build_network(plan)
    write_bundle(tmp_path / "run" / "bundle", network, plan, card, selection=selection)
    return tmp_path / "run"


@pytest.fixture
def raw(tmp_path):
    """Write two training cases and a test case with two labels, of which one has no image."""
    image = np.zeros((4, 5, 6))
    mask = np.ones((4, 5, 6))
    cases = {"a": ("Tr", image, mask), "b": ("Tr", image, mask), "t": ("Ts", image, mask)}
    labels = {"background": 0, "scar": 1, "cyst": 2}
    root = write_raw(tmp_path / "raw", labels, cases, file_ending=".nii.gz", numTraining=2)
    (root / "imagesTr" / "b_0000.nii.gz").write_bytes(b"")
    return root


def test_facts_of_a_bundle_are_those_of_its_files(run):
    outcome = ask(bundle=str(run))
    found = outcome.record()["model"]
    bundle = run / "bundle"
    weights = load_file(bundle / "weights.safetensors")
    assert (found["path"], found["digest"]) == (bundle, bundle_digest(bundle))
    assert found["plan"] == read_json(bundle / "plan.json")
    assert found["selection"] == read_json(bundle / "selection.json")
    assert found["n_weights"] == sum(array.size for array in weights.values())
    assert found["operating_point"] == POINT.name
    card_fields = found["stated"]
    assert card_fields.items() >= {name: str(fact) for name, fact in FACTS.items()}.items()
    assert card_fields["license"] == "unknown"
    # of the selection (its name contains a colon), of the plan, and of the Hub
    assert not {"operating point fp_per_case", "network", "tags"} & card_fields.keys()
    assert found["card"] == bundle / "README.md"
    text = "\n".join(outcome.summary())
    for fact in ("T1", "lesion", "score 0.25", "4 patients", "recall 0.9", "best_f1"):
        assert fact in text


def test_next_command_predicts_as_the_operating_point_was_chosen(run):
    _, command, *overrides = shlex.split(ask(bundle=str(run)).next)
    cfg = compose(command, overrides)
    assert cfg.bundle == (str(run / "bundle"),)
    assert cfg.inference.flips


def test_next_command_trusts_a_model_with_transforms_of_the_user(tmp_path, plan):
    plan = plan.with_(prepare_extra=({"_target_": "mine.Same", "keys": "image"},))
    write_bundle(tmp_path / "bundle", build_network(plan), plan, "")
    assert "trust=true" in ask(bundle=str(tmp_path / "bundle")).next


def test_bundle_without_points_and_card_states_no_training(tmp_path, plan):
    write_bundle(tmp_path / "bundle", build_network(plan), plan, "license: mit\n")
    text = "\n".join(ask(bundle=str(tmp_path / "bundle")).summary())
    assert "Licence: mit" in text
    assert "Trained: not stated" in text
    assert "score 0.5" in text


@pytest.mark.parametrize("part", ["", "fold_1"])
def test_facts_of_an_nnunet_model_are_those_of_the_folds_that_are_named(part, tmp_path):
    small = SmallModel(channels=("FLAIR", "T1"), n_folds=2)
    small = small.with_(schemes=small.schemes * 2, use_mask=small.use_mask * 2)
    folder = small.write(tmp_path)
    described = read_json(folder / "dataset.json") | {"licence": "CC-0", "numTraining": 9}
    write_json(folder / "dataset.json", described)
    outcome = ask(bundle=str(folder / part))
    found = outcome.record()["model"]
    assert found["plan"]["channel_names"] == ["FLAIR", "T1"]
    assert found["selection"]["n_members"] == (1 if part else 2)
    assert found["digest"] == bundle_digest(folder / part)
    network = read_bundle(folder).networks[0]
    assert found["n_weights"] == sum(weight.numel() for weight in network.parameters())
    text = "\n".join(outcome.summary())
    for fact in ("FLAIR, T1 in this order", "CC-0", "scans: 9", "ZScoreNormalization"):
        assert fact in text
    if not part:
        archive = shutil.make_archive(tmp_path / "model", "zip", tmp_path, folder.parent.name)
        assert ask(bundle=archive).record()["model"]["digest"] == found["digest"]


def test_facts_of_a_folder_are_those_of_its_listing(raw):
    outcome = ask(data={"root": str(raw)})
    found = outcome.record()
    assert found["model"] is None
    expected = {"layout": "nnunet", "cases": 3, "patients": 3, "masks": 3, "axes": 3}
    expected |= {"channels": ("T1",), "labels": {1: "scar", 2: "cyst"}, "files": {".nii.gz": 6}}
    expected |= {"roles": {"not stated": 2, "test": 1}}
    expected |= {"shape": (4, 5, 6), "spacing": (2.0, 2.0, 2.0), "unit": "mm"}
    assert found["dataset"].items() >= expected.items()
    assert "Shape:   4, 5, 6" in outcome.summary()
    assert [(one["case"], one["severity"]) for one in found["findings"]] == [("b", "error")]
    assert "b_0000" in outcome.summary()[-1]
    assert "check=true" in outcome.next


def test_unreadable_first_image_is_a_finding(raw):
    (raw / "imagesTr" / "a_0000.nii.gz").write_bytes(b"no image")
    found = ask(data={"root": str(raw)}).record()
    assert {one["case"] for one in found["findings"]} == {"a", "b"}
    assert found["dataset"]["shape"] is None


def test_folder_of_scans_without_a_layout_is_described(run, tmp_path):
    folder = tmp_path / "scans"
    image = np.zeros((4, 5, 6), np.float32)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_array(folder / name, image, Geometry.from_spacing(image.shape, (3.0, 2.0, 1.0)))
    outcome = ask(bundle=str(run), data={"root": str(folder)})
    info = {"layout": "scans", "cases": 2, "axes": 3, "shape": (4, 5, 6), "masks": 0}
    assert outcome.dataset.items() >= info.items()
    assert outcome.dataset["fits"] == "axes are those of the model"
    assert "predict bundle=MODEL" in ask(data={"root": str(folder)}).next


def test_damaged_first_scan_of_a_folder_is_a_finding(tmp_path):
    settings = {"data": {"root": str(tmp_path)}}
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DatasetError, match="no image found"):
        ask(**settings)
    (tmp_path / "a.nii.gz").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="not a NIfTI image"):
        ask(**settings)
    write_array(tmp_path / "b.nii.gz", np.zeros((4, 5, 6), np.float32))
    outcome = ask(**settings)
    assert (outcome.dataset["axes"], outcome.dataset["cases"]) == (3, 2)
    assert [finding.case for finding in outcome.findings] == ["a"]


def test_patients_and_folds_are_counted(raw):
    rows = [f"P1_{case},imagesTr/{case}_0000.nii.gz,labelsTr/{case}.nii.gz,0\n" for case in "ab"]
    (raw / "manifest.csv").write_text("case,image,reference,fold\n" + "".join(rows))
    (raw / "dataset.json").unlink()
    found = ask(data={"root": str(raw), "group": "(P1)_"}).record()["dataset"]
    assert (found["layout"], found["patients"], found["folds"]) == ("manifest", 1, {0: 2})


@pytest.mark.parametrize(("channel", "n_misfits"), [("T1", 0), ("FLAIR", 1)])
def test_folder_with_other_channels_than_the_model_is_a_finding(channel, n_misfits, run, raw):
    described = read_json(raw / "dataset.json") | {"channel_names": {"0": channel}}
    write_json(raw / "dataset.json", described)
    outcome = ask(bundle=str(run), data={"root": str(raw)})
    assert [finding.kind for finding in outcome.findings].count("misfit") == n_misfits
    assert ("fits" in outcome.dataset) == (n_misfits == 0)


def test_json_is_one_line_with_the_facts_of_both(run, raw, capsys):
    assert main(["info", f"bundle={run}", f"data.root={raw}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["plan"]["dims"] == found["dataset"]["axes"] == 3
    assert found["next"].startswith("lesionseg predict bundle=")
