"""Bundles: round trips, damaged files, bundles of version 1.0, and ensembles."""

import json
import pickle
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lesionseg.core import Calibration, OperatingPoint, Selection
from lesionseg.errors import BundleError, ConfigError, OutputError
from lesionseg.inference.bundle import Bundle, bundle_digest, ensemble, read_bundle, write_bundle
from lesionseg.inference.input_check import InputCheck
from lesionseg.io.bundle_folder import BundleFiles, resolve_bundle
from lesionseg.io.text import read_json
from lesionseg.models.build import build_network
from lesionseg.plan.plan import AnchorPlan, Plan
from tests.inference.networks import Bright
from tests.inference.rounding import change_last_digits


@pytest.fixture
def folder(tmp_path, plan):
    write_bundle(tmp_path / "bundle", build_network(plan), plan, "# card\n")
    return tmp_path / "bundle"


def test_bundle_survives_a_round_trip(folder, plan):
    selection = Selection((OperatingPoint("fp_per_case:1", 0.3, "validation"),))
    members = [build_network(plan, seed=seed) for seed in (5, 6, 7)]
    write_bundle(folder, members, plan, "# card\n", selection=selection)
    back = read_bundle(folder)
    assert back.plan == plan
    assert back.selection == replace(selection, n_members=3)
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    for network, member in zip(back.networks, members, strict=True):
        assert not network.training
        with torch.inference_mode():
            assert torch.equal(network(image)[0], member.eval()(image)[0])


def test_bundle_without_the_weights_of_a_member_is_an_error(folder, plan):
    before = bundle_digest(folder)
    write_bundle(folder, [build_network(plan, seed=seed) for seed in (5, 6, 7)], plan, "# card\n")
    whole = bundle_digest(folder)
    (folder / "weights_1.safetensors").unlink()
    assert len({before, whole, bundle_digest(folder)}) == 3
    with pytest.raises(BundleError):
        read_bundle(folder)


def test_new_bundle_replaces_all_files_of_the_old_bundle(folder, plan):
    (folder / "stale.txt").write_text("old")
    write_bundle(folder, build_network(plan, seed=9), plan, "# new\n")
    names = ["README.md", "plan.json", "selection.json", "weights.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert (
        len({p.stat().st_mode for p in folder.iterdir()}) == 1
    )  # all files have the same access rights


CHOSEN = Selection(
    (OperatingPoint("fp_per_case:1", 0.3, "validation"),),
    voxel_calibration=Calibration(0.0, 1e-7, "validation"),
)
CHECK = InputCheck(medians={"log spacing": 0.7, "mean": 0.0}, tolerances={"mean": 0.4})


def test_bundle_that_differs_by_rounding_keeps_its_bytes(tmp_path, plan):
    folder = tmp_path / "bundle"
    write = partial(write_bundle, folder, [build_network(plan)] * 2, plan)
    write("# card\n", CHECK, CHOSEN)
    files = BundleFiles(folder)
    for path in (*files.weights_of(2), files.plan, files.selection):
        change_last_digits(path)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    digest = bundle_digest(folder)
    write("# new\n", CHECK, CHOSEN)
    assert bundle_digest(folder) == digest
    assert files.card.read_text() == "# new\n"
    del before["README.md"]
    for name, old in before.items():
        assert ((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns) == old


@pytest.mark.parametrize(
    "changes",
    [
        {"network": 1},
        {"plan": {"lesion_fraction": 0.00101}},
        {"plan": {"batch_size": 3}},
        {"selection": {"operating_points": (OperatingPoint("fp_per_case:1", 0.30001),)}},
        {"selection": {"voxel_calibration": Calibration(1e-4, 1.0, "validation")}},
        {"selection": {"voxel_calibration": Calibration(0.0, 6e-7, "validation")}},
        {"selection": {"reasons": {"calibration": "another reason."}}},
        {"check": {"medians": {"log spacing": 0.7001, "mean": 0.0}}},
        {"check": {"medians": {"log extent": 0.7, "mean": 0.0}}},
    ],
)
def test_bundle_with_other_content_replaces_the_old_one(tmp_path, plan, changes):
    def write(changes):
        write_bundle(
            tmp_path / "bundle",
            build_network(plan, seed=changes.get("network", 0)),
            plan.with_(**{"lesion_fraction": 0.001, **changes.get("plan", {})}),
            "# card\n",
            CHECK.model_copy(update=changes.get("check", {})),
            replace(CHOSEN, **changes.get("selection", {})),
        )
        return bundle_digest(tmp_path / "bundle")

    assert write({}) != write(changes)


def test_old_bundle_stays_if_the_new_bundle_cannot_be_written(folder, plan, monkeypatch):
    before = bundle_digest(folder)

    def raise_full_disk(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("lesionseg.inference.bundle.save_file", raise_full_disk)
    with pytest.raises(OutputError):
        write_bundle(folder, build_network(plan), plan, "")
    assert bundle_digest(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_run_directory_stands_for_the_bundle_inside(folder, plan):
    (folder.parent / "plan.json").write_text(plan.to_json())
    assert resolve_bundle(folder.parent) == resolve_bundle(folder) == folder
    for wrong in (folder.parent.parent, folder / "absent"):
        with pytest.raises(BundleError):
            resolve_bundle(wrong)
    with pytest.raises(BundleError, match="it is a file"):
        resolve_bundle(folder / "weights.safetensors")


class Touch:
    """An object that creates the file `ran` if it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [torch.save, save_pickle])
def test_pickle_named_safetensors_is_not_opened(folder, save, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    save({"a": Touch()}, folder / "weights.safetensors")
    with pytest.raises(BundleError):
        read_bundle(folder)
    assert not Path("ran").exists()


def test_weights_that_begin_with_the_first_byte_of_a_pickle_are_read(folder, plan):
    tensors = build_network(plan).state_dict()
    path = folder / "weights.safetensors"
    for n in range(0, 256, 8):  # headers are padded to 8 bytes
        save_file(tensors, path, metadata={"note": "x" * n})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert read_bundle(folder).plan == plan


def test_error_names_the_tensors_that_do_not_fit(folder, plan):
    tensors = {name: t.clone() for name, t in build_network(plan).state_dict().items()}
    missing, odd, infinite = sorted(tensors)[:3]
    del tensors[missing]
    tensors |= {"unknown": torch.zeros(1), odd: torch.zeros(7, 7)}
    # shapes are compared before the values are read
    tensors[infinite] = tensors[infinite] * float("nan")
    for names in ((missing, odd, "unknown"), (infinite,)):
        save_file(tensors, folder / "weights.safetensors")
        with pytest.raises(BundleError) as caught:
            read_bundle(folder)
        assert all(name in str(caught.value) for name in names)
        tensors = build_network(plan).state_dict()
        tensors[infinite] = tensors[infinite] * float("nan")


def test_weights_of_another_network_are_not_read_into_memory(folder, monkeypatch):
    header = json.dumps({"w": {"dtype": "U8", "shape": [2**30], "data_offsets": [0, 2**30]}})
    with (folder / "weights.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 2**30)  # zeros that take no space on the disk

    def read(*_):
        raise AssertionError("the values are read")

    monkeypatch.setattr("lesionseg.inference.bundle.require_finite", read)
    with pytest.raises(BundleError, match="do not fit"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["plan.json", "selection.json", "README.md"])
def test_text_of_a_bundle_has_a_limit(folder, name):
    with (folder / name).open("ab") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(BundleError, match=rf"{name}: the file has \d+ bytes"):
        BundleFiles(folder).card_facts() if name == "README.md" else read_bundle(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 2**16},
        {"width": 2**16, "depth": 64},
        {"sizes": (((4.0, 4.0, 4.0),) * 1000,)},
    ],
)
def test_plan_of_a_too_large_network_is_an_error_before_memory_is_allocated(
    tmp_path, plan, changes
):
    anchors = AnchorPlan(stages=(1,), sizes=(((4.0, 4.0, 4.0),),), width=8, depth=1)
    plan = plan.with_(
        architecture=replace(plan.architecture, name="retinanet"),
        anchors=anchors,
        candidate_rule=replace(plan.candidate_rule, source="detection"),
    )
    folder = tmp_path / "bundle"
    write_bundle(folder, build_network(plan), plan, "# card\n")
    assert read_bundle(folder).plan == plan
    damaged = plan.with_(anchors=replace(anchors, **changes))
    (folder / "plan.json").write_text(damaged.to_json())
    with pytest.raises(BundleError, match="size mismatch"):
        read_bundle(folder)


def test_damaged_files_are_an_error(folder):
    weights = folder / "weights.safetensors"
    damaged = [(weights, weights.read_bytes()[:-100])]
    for path in (folder / "plan.json", folder / "selection.json"):
        newer = json.dumps({**read_json(path), "schema_version": 99}).encode()
        damaged += [(path, newer), (path, b"\xff\xfe\x00")]
    for path, content in damaged:
        sound = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(BundleError):
            read_bundle(folder)
        path.write_bytes(sound)
    read_bundle(folder)


def write_bundle_of_version_1_0(folder):
    """Write a bundle whose plan.json also contains the selection. Return both."""
    old = Path(__file__).parents[1] / "plan" / "plan_schema_1.json"
    plan = Plan.from_json(old.read_text("utf-8"))
    write_bundle(folder, build_network(plan), plan, "# card\n")
    (folder / "selection.json").unlink()
    shutil.copy(old, folder / "plan.json")
    return plan, Selection.from_json(old.read_text("utf-8"))


def test_bundle_of_version_1_0_is_read_with_its_selection(folder):
    plan, selection = write_bundle_of_version_1_0(folder)
    found = read_bundle(folder)
    assert (found.plan, found.selection) == (plan, selection)
    assert len(selection.operating_points) == 9
    assert selection.voxel_calibration is not None


def test_bundle_without_its_selection_is_an_error(folder):
    (folder / "selection.json").unlink()
    with pytest.raises(BundleError, match=r"no selection\.json\. Copy the bundle again"):
        read_bundle(folder)


def make_own_network(_):
    return Bright(0.0, 0.0)


def test_own_network_is_passed_as_an_object_and_never_imported(tmp_path, plan):
    named = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "b", Bright(3.0, 2.0), named, "")
    network = read_bundle(tmp_path / "b", {"mine": make_own_network}).networks[0]
    assert isinstance(network, Bright)
    assert network.level.item() == 3.0
    with pytest.raises(ConfigError):
        read_bundle(tmp_path / "b")


def test_ensemble_of_equal_networks_is_warned_about(tmp_path, plan, caplog):
    for name in ("a", "b"):
        network = build_network(plan)
        next(network.parameters()).data.normal_()
        write_bundle(tmp_path / name, network, plan, "")
    ensemble([tmp_path / "a", tmp_path / "b"])
    assert "same weights" not in caplog.text
    ensemble([tmp_path / "a", tmp_path / "b", tmp_path / "a"])
    assert "two of the 3 networks have the same weights" in caplog.text


def test_ensemble_of_bundles_with_different_plans_is_an_error(plan):
    bundles = [Bundle((build_network(plan),), plan) for _ in range(2)]
    assert ensemble(bundles).selection.n_members == 2
    flipped = [replace(bundles[0], plan=plan.with_(flip_axes=axes)) for axes in ((0, 1), (1, 2))]
    assert ensemble(flipped).plan.flip_axes == (1,)  # those of all members
    others = {
        "spacing_mm": replace(plan, spacing_mm=(2.0, 2.0, 2.0)),
        "anchors": replace(plan, anchors=AnchorPlan((1,), ())),
    }
    for name, other in others.items():
        with pytest.raises(BundleError, match=f"number 2 has another {name}"):
            ensemble([bundles[0], replace(bundles[1], plan=other)])
    with pytest.raises(BundleError):
        ensemble([])
