"""`info`: what a model needs, and what a folder contains."""

import json
import shlex
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from lesionseg.cli import compose, main
from lesionseg.config import COMMANDS
from lesionseg.core import Geometry, OperatingPoint, Selection
from lesionseg.errors import DatasetError
from lesionseg.inference.bundle import bundle_digest, read_bundle, write_bundle
from lesionseg.inference.model_card import model_card
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


def test_facts_of_a_bundle_are_those_of_its_files(run, plan):
    outcome = ask(bundle=str(run))
    found = outcome.record()["model"]
    bundle = run / "bundle"
    n_weights = sum(array.size for array in load_file(bundle / "weights.safetensors").values())
    assert (found["path"], found["digest"]) == (bundle, bundle_digest(bundle))
    assert found["plan"] == json.loads((bundle / "plan.json").read_text())
    assert found["selection"] == json.loads((bundle / "selection.json").read_text())
    assert found["n_weights"] == n_weights
    assert found["operating_point"] == found["selection"]["operating_points"][0]["name"]
    assert "operating point fp_per_case" not in found["stated"]  # its name contains a colon
    assert found["stated"].items() >= {name: str(fact) for name, fact in FACTS.items()}.items()
    assert not {"network", "mask value 1", "spacing_mm"} & found["stated"].keys()  # of the plan
    assert found["stated"]["license"] == "unknown"
    assert not {"tags", "library_name"} & found["stated"].keys()  # of the Hub
    assert found["card"] == bundle / "README.md"
    text = "\n".join(outcome.summary())
    for fact in ("T1", "lesion", "score 0.25", "4 patients", "recall 0.9", "best_f1", "12"):
        assert fact in text
    assert len(outcome.summary()) < 24  # a screen


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
    facts = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**facts, "licence": "CC-0", "numTraining": 9}))
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
        with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
            for file in folder.rglob("*.*"):
                archive.write(file, file.relative_to(folder.parent))
        zipped = ask(bundle=str(tmp_path / "model.zip")).record()["model"]
        assert zipped["digest"] == found["digest"]
        assert zipped["plan"] == found["plan"] | {"reasons": zipped["plan"]["reasons"]}


def test_facts_of_a_folder_are_those_of_its_listing(raw):
    outcome = ask(data={"root": str(raw)})
    found = outcome.record()
    assert found["model"] is None
    facts = {"layout": "nnunet", "cases": 3, "patients": 3, "masks": 3, "axes": 3}
    assert found["dataset"].items() >= facts.items()
    assert found["dataset"]["channels"] == ("T1",)
    assert found["dataset"]["roles"] == {"not stated": 2, "test": 1}
    assert found["dataset"]["labels"] == {1: "scar", 2: "cyst"}
    assert found["dataset"]["files"] == {".nii.gz": 6}
    size = {"shape": (4, 5, 6), "spacing": (2.0, 2.0, 2.0), "unit": "mm"}
    assert found["dataset"].items() >= size.items()
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
    facts = {"layout": "scans", "cases": 2, "axes": 3, "shape": (4, 5, 6), "masks": 0}
    assert outcome.dataset.items() >= facts.items()
    assert outcome.dataset["fits"] == "axes are those of the model"
    assert "predict bundle=MODEL" in ask(data={"root": str(folder)}).next


def test_damaged_first_scan_of_a_folder_is_a_finding(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"no image")
    write_array(tmp_path / "b.nii.gz", np.zeros((4, 5, 6), np.float32))
    outcome = ask(data={"root": str(tmp_path)})
    assert (outcome.dataset["axes"], outcome.dataset["cases"]) == (3, 2)
    assert [finding.case for finding in outcome.findings] == ["a"]
    (tmp_path / "b.nii.gz").unlink()
    with pytest.raises(DatasetError, match="not a NIfTI image"):
        ask(data={"root": str(tmp_path)})


def test_folder_without_scans_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DatasetError, match="no image found"):
        ask(data={"root": str(tmp_path)})


def test_patients_and_folds_are_counted(tmp_path):
    cases = {name: ("Tr", np.zeros((4, 4, 4)), np.ones((4, 4, 4))) for name in ("P1_1", "P1_2")}
    root = write_raw(tmp_path / "raw", {"background": 0, "lesion": 1}, cases, file_ending=".nii.gz")
    (root / "dataset.json").unlink()
    rows = [f"{name},imagesTr/{name}_0000.nii.gz,labelsTr/{name}.nii.gz,0\n" for name in cases]
    (root / "manifest.csv").write_text("case,image,reference,fold\n" + "".join(rows))
    found = ask(data={"root": str(root), "group": "(P1)_"}).record()["dataset"]
    assert (found["layout"], found["patients"], found["folds"]) == ("manifest", 1, {0: 2})


@pytest.mark.parametrize(("channel", "n_misfits"), [("T1", 0), ("FLAIR", 1)])
def test_folder_with_other_channels_than_the_model_is_a_finding(channel, n_misfits, run, raw):
    facts = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**facts, "channel_names": {"0": channel}}))
    outcome = ask(bundle=str(run), data={"root": str(raw)})
    assert [finding.kind for finding in outcome.findings].count("misfit") == n_misfits
    assert ("fits" in outcome.dataset) == (n_misfits == 0)


def test_json_is_one_line_with_the_facts_of_both(run, raw, capsys):
    assert main(["info", f"bundle={run}", f"data.root={raw}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["plan"]["dims"] == found["dataset"]["axes"] == 3
    assert found["next"].startswith("lesionseg predict bundle=")
