"""Preparation of a case on the plan's grid: joins `preprocess_image` and `preprocess_reference`.

The grid covers the same region as the file's grid. The image is also normalised.
"""

from dataclasses import dataclass

from lesionseg.core import Case, Reference, Volume
from lesionseg.data.preprocess_image import prepare_image
from lesionseg.data.preprocess_reference import prepare_reference
from lesionseg.plan.plan import Plan


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the plan's grid: image `[C, *spatial]` float32, and its prepared reference."""

    case: str
    group: str
    image: Volume
    reference: Reference | None


def prepare_case(case: Case, plan: Plan) -> PreparedCase:
    """Prepare image and reference of a case on the plan's grid.

    Args:
        case: The case, as it was read from its files.
        plan: The grid, normalisation and labels.

    Returns:
        The prepared case. Its reference is None if the case has no reference.

    Raises:
        ContentError: If channels or axes differ from the plan, or the plan lacks a label.
        GeometryError: If the spacing cannot be right, or the grid would have too many voxels.
        ConfigError: If a transform of `plan.prepare_extra` fails.
    """
    image = prepare_image(case.image, plan, where=case.case)
    reference = None
    if case.reference is not None:
        reference = prepare_reference(case.reference, image.geometry, plan, where=case.case)
    return PreparedCase(case.case, case.group, image, reference)
