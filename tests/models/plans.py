"""A plan of a small network for tests."""

from typing import Any

from lesionseg.core import Labels
from lesionseg.plan.plan import Architecture, Normalisation, Plan


def plan_of(
    name: str = "unet",
    dims: int = 2,
    *,
    strides: tuple[tuple[int, ...], ...] = (),
    n_channels: int = 1,
    labels: tuple[str, ...] = ("lesion",),
    regions: tuple[tuple[int, ...], ...] = (),
    table: dict[str, Any] | None = None,
    **changes: Any,
) -> Plan:
    """Return a plan with three stages of 4, 8 and 16 features. `table` changes the architecture."""
    strides = strides or ((1,) * dims, (2,) * dims, (2,) * dims)
    n = len(strides)
    sizes = {
        "features": tuple(4 * 2**i for i in range(n)),
        "kernels": ((3,) * dims,) * n,
        "n_supervised": n,
        **(table or {}),
    }
    return Plan(
        dims=dims,
        modality="mri",
        channel_names=tuple(f"channel {c}" for c in range(n_channels)),
        labels=Labels(tuple(range(1, len(labels) + 1)), labels, regions),
        spacing_mm=(1.0,) * dims,
        normalisation=(Normalisation("zscore"),) * n_channels,
        tile_shape=(16,) * dims,
        batch_size=2,
        architecture=Architecture(name, strides=strides, **sizes),
        lesion_fraction=0.01,
    ).with_(**changes)
