"""A plan of a small network for tests."""

from lesionseg.core import Labels
from lesionseg.plan.plan import Architecture, Normalisation, Plan


def plan_of(
    name="unet",
    dims=2,
    *,
    strides=(),
    n_channels=1,
    labels=("lesion",),
    regions=(),
    table=None,
    **changes,
):
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
