"""Bundles: round trips, damaged files, bundles of version 1.0, and ensembles."""

import json
import pickle
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

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
from tests.inference.networks import Bright, make_bright
from tests.inference.rounding import change_last_digits
from tests.noise import noise


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
    image = noise(1, 1, 16, 16, 16)
    for network, member in zip(back.networks, members, strict=True):
        assert not network.training
        with torch.inference_mode():
            assert torch.equal(network(image)[0], member.eval()(image)[0])


def test_bundle_without_the_weights_of_a_member_or_its_selection_is_an_error(folder, plan):
    digests = {bundle_digest(folder)}
    write_bundle(folder, [build_network(plan, seed=seed) for seed in (5, 6, 7)], plan, "# card\n")
    digests.add(bundle_digest(folder))
    (folder / "weights_1.safetensors").unlink()
    digests.add(bundle_digest(folder))
    assert len(digests) == 3
    with pytest.raises(BundleError):
        read_bundle(folder)
    (folder / "selection.json").unlink()
    with pytest.raises(BundleError, match=r"no selection\.json"):
        read_bundle(folder)


def test_new_bundle_replaces_all_files_of_the_old_bundle(folder, plan):
    (folder / "stale.txt").write_text("old")
    write_bundle(folder, build_network(plan, seed=9), plan, "# new\n")
    names = ["README.md", "plan.json", "selection.json", "weights.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1  # equal access rights


CHOSEN = Selection(
    (OperatingPoint("fp_per_case:1", 0.3, "validation"),),
    voxel_calibration=Calibration(0.0, 1e-7, "validation"),
)
CHECK = InputCheck(medians={"log spacing": 0.7, "mean": 0.0}, tolerances={"mean": 0.4})


def test_bundle_that_differs_by_rounding_keeps_its_bytes(tmp_path, plan):
    folder = tmp_path / "bundle"
    write = partial(write_bundle, folder, [build_network(plan)] * 2, plan)

    def state():
        return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}

    write("# card\n", CHECK, CHOSEN)
    files = BundleFiles(folder)
    for path in (*files.weights_of(2), files.plan, files.selection):
        change_last_digits(path)
    before = state()
    digest = bundle_digest(folder)
    write("# new\n", CHECK, CHOSEN)
    assert bundle_digest(folder) == digest
    assert files.card.read_text() == "# new\n"
    assert state() | {"README.md": before["README.md"]} == before


@pytest.mark.parametrize(
    "changes",
    [
        {"network": 1},
        {"plan": {"lesion_fraction": 0.00101}},
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
    full_disk = Mock(side_effect=OSError("disk full"))
    monkeypatch.setattr("lesionseg.inference.bundle.save_file", full_disk)
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
    tensors = build_network(plan).state_dict()
    missing, odd, infinite = sorted(tensors)[:3]
    not_finite = tensors | {infinite: tensors[infinite] * float("nan")}
    # shapes are compared before the values are read
    other_shapes = not_finite | {"unknown": torch.zeros(1), odd: torch.zeros(7, 7)}
    del other_shapes[missing]
    for content, names in ((other_shapes, (missing, odd, "unknown")), (not_finite, (infinite,))):
        save_file(content, folder / "weights.safetensors")
        with pytest.raises(BundleError) as caught:
            read_bundle(folder)
        assert all(name in str(caught.value) for name in names)


def test_weights_of_another_network_are_not_read_into_memory(folder, monkeypatch):
    header = json.dumps({"w": {"dtype": "U8", "shape": [2**30], "data_offsets": [0, 2**30]}})
    with (folder / "weights.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 2**30)  # zeros that take no space on the disk
    is_read = Mock()
    monkeypatch.setattr("lesionseg.inference.bundle.require_finite", is_read)
    with pytest.raises(BundleError, match="do not fit"):
        read_bundle(folder)
    assert not is_read.called


@pytest.mark.parametrize("name", ["plan.json", "selection.json", "README.md"])
def test_text_of_a_bundle_has_a_limit(folder, name):
    with (folder / name).open("ab") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(BundleError, match=rf"{name}: the file has \d+ bytes"):
        BundleFiles(folder).card_fields() if name == "README.md" else read_bundle(folder)


@pytest.mark.parametrize(
    "changes", [{"width": 2**16, "depth": 64}, {"sizes": (((4.0, 4.0, 4.0),) * 1000,)}]
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
    write_bundle(tmp_path / "bundle", build_network(plan), plan, "# card\n")
    assert read_bundle(tmp_path / "bundle").plan == plan
    damaged = plan.with_(anchors=replace(anchors, **changes))
    (tmp_path / "bundle/plan.json").write_text(damaged.to_json())
    with pytest.raises(BundleError, match="size mismatch"):
        read_bundle(tmp_path / "bundle")


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


def test_bundle_of_version_1_0_is_read_with_its_selection(folder):
    """Its plan.json also contains the selection."""
    old = Path(__file__).parents[1] / "plan/plan_schema_1.json"
    plan = Plan.from_json(old.read_text("utf-8"))
    selection = Selection.from_json(old.read_text("utf-8"))
    write_bundle(folder, build_network(plan), plan, "# card\n")
    (folder / "selection.json").unlink()
    shutil.copy(old, folder / "plan.json")
    found = read_bundle(folder)
    assert (found.plan, found.selection) == (plan, selection)
    assert len(selection.operating_points) == 9
    assert selection.voxel_calibration is not None


def test_own_network_is_passed_as_an_object_and_never_imported(tmp_path, plan):
    named = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "b", Bright(3.0, 2.0), named, "")
    network = read_bundle(tmp_path / "b", {"mine": make_bright}).networks[0]
    assert isinstance(network, Bright)
    assert (network.level.item(), network.gain.item()) == (3.0, 2.0)
    with pytest.raises(ConfigError):
        read_bundle(tmp_path / "b")


def test_ensemble_of_equal_networks_is_warned_about(plan, caplog):
    one, other = (Bundle((build_network(plan, seed=seed),), plan) for seed in (1, 2))
    ensemble([one, other])
    assert "same weights" not in caplog.text
    ensemble([one, other, one])
    assert "two of the 3 networks have the same weights" in caplog.text


def test_ensemble_of_bundles_with_different_plans_is_an_error(plan):
    bundle = Bundle((build_network(plan),), plan)
    assert ensemble([bundle, bundle]).selection.n_members == 2
    flipped = [replace(bundle, plan=plan.with_(flip_axes=axes)) for axes in ((0, 1), (1, 2))]
    assert ensemble(flipped).plan.flip_axes == (1,)  # those of all members
    others = {"spacing_mm": (2.0, 2.0, 2.0), "anchors": AnchorPlan((1,), ())}
    for name, value in others.items():
        other = replace(bundle, plan=replace(plan, **{name: value}))
        with pytest.raises(BundleError, match=f"number 2 has another {name}"):
            ensemble([bundle, other])
    with pytest.raises(BundleError):
        ensemble([])
