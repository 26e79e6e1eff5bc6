"""The rules on real scans, where they lie beside the repository."""

import os
from pathlib import Path

import pytest

from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset
from lesionseg.models.memory import step_gb
from lesionseg.plan import Plan, make_plan
from tests.plan.conftest import take_fingerprint

DATA = Path(os.environ.get("LESIONSEG_DATA", Path(__file__).parents[3] / "shared" / "data"))


def plan_for(name: str, device: str = "cpu") -> Plan:
    if not (DATA / name).is_dir():
        pytest.skip("the real scans are not here")
    dataset = read_dataset(DATA / name)
    cases = (read_case(c, dataset) for c in dataset.cases[:40] if c.role != "test")
    return make_plan(
        take_fingerprint(dataset, cases),
        dataset,
        memory_gb=24,
        device=device,
        step_memory=step_gb,
    )


@pytest.mark.data
def test_small_white_matter_lesions_keep_the_finest_grid():
    plan = plan_for("mri/ms_cs")
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert plan.candidate_rule.min_voxels == 1
    assert "less than 3 voxels across" in plan.reasons["spacing_mm"]
    assert (plan.tile_shape, plan.batch_size) == ((32, 32, 32), 16)


@pytest.mark.data
def test_an_anisotropic_set_gets_anisotropic_strides():
    plan = plan_for("mri/sts_mr", device="cuda")
    assert plan.architecture.strides[1] == (1, 2, 2)
    assert plan.architecture.kernels[0] == (1, 3, 3)


@pytest.mark.data
def test_small_cubes_of_ct_fit_one_tile():
    plan = plan_for("ct/lung_nodule_cubes")
    assert plan.tile_shape == (56, 56, 56)
    assert plan.modality == "ct"
    assert plan.normalisation[0].lower is not None
    assert plan.normalisation[0].lower < -850  # the lung keeps its texture


@pytest.mark.data
def test_radiographs_keep_their_resolution_for_small_nodules_alone():
    assert plan_for("xray/lidc_drr").spacing_mm == (1.0, 1.0)
    assert plan_for("xray/nih_nodule_mass").spacing_mm == (2.0, 2.0)
