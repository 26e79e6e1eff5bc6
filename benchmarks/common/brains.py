"""Plans of GPUs with 8 to 24 GB for one dataset: 300 brains of 160 × 192 × 160 voxels."""

from functools import cache
from pathlib import Path

from lesionseg.config import ModelConfig
from lesionseg.core import Dataset, Labels
from lesionseg.models.memory_formula import step_gb
from lesionseg.plan import Fingerprint, make_plan
from lesionseg.plan.fingerprint import ChannelStatistics, Spread
from lesionseg.plan.plan import Plan

MEMORY_GB = (8, 12, 24)
N_CASES = 300
SHAPE = (160, 192, 160)


@cache
def plan_for_gpu(architecture: str, memory_gb: float) -> Plan:
    """Return the plan of `train model=architecture` on a card."""
    spread = Spread(90.0, 40.0, -5.0, 240.0)
    n_lesions = 5 * N_CASES
    fingerprint = Fingerprint(
        modality="mri",
        dims=3,
        shapes=(SHAPE,) * N_CASES,
        spacings_mm=((1.0,) * 3,) * N_CASES,
        channels=(ChannelStatistics("T1", False, spread, spread, 0.7),),
        lesion_fraction=1e-3,
        lesion_voxels=(200,) * n_lesions,
        diameters_mm=tuple(3.0 + 0.01 * i for i in range(n_lesions)),
        extents_mm=tuple((3.0 + 0.01 * i,) * 3 for i in range(n_lesions)),
        lesions_per_case=(5,) * N_CASES,
    )
    dataset = Dataset("brains", Path("unused"), "nnunet", 3, ("T1",), Labels.of({1: "lesion"}), ())
    return make_plan(
        fingerprint,
        dataset,
        memory_gb=memory_gb,
        device="cuda",
        overrides=ModelConfig.of(architecture=architecture),
        step_memory=step_gb,
    )
