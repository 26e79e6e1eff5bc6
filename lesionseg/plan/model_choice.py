"""Rule of `model=auto`: detector for boxes and for masks drawn from boxes, otherwise U-Net."""

from dataclasses import dataclass

from lesionseg.errors import count
from lesionseg.plan.box_outlines import SHORTEST_SIDE
from lesionseg.plan.fingerprint import Fingerprint
from lesionseg.plan.rules import Decision

MODEL_FOR_BOXES = "retinanet"
MODEL_FOR_BOX_OUTLINES = "retina_unet"
MODEL_FOR_MASKS = "unet"
# share of the tested lesions that must have the outline of a box, and the fewest tested lesions
BOX_SHARE = 0.95
FEWEST = 3


@dataclass(frozen=True)
class ReferenceKinds:
    """The statistics of a dataset's references from which the model is chosen.

    Attributes:
        dims: Number of spatial axes.
        n_with_lesions: Number of cases with lesions.
        n_boxed: Number of cases whose lesions are boxes without a mask.
        n_outlines: Number of lesions whose outlines were tested (`plan.box_outlines`).
        n_box_outlines: Number of them that are filled rectangles or ellipses.
    """

    dims: int
    n_with_lesions: int
    n_boxed: int = 0
    n_outlines: int = 0
    n_box_outlines: int = 0

    @classmethod
    def of(cls, fingerprint: Fingerprint) -> "ReferenceKinds":
        """Return the statistics of references that a fingerprint contains."""
        return cls(
            dims=fingerprint.dims,
            n_with_lesions=sum(n > 0 for n in fingerprint.lesions_per_case),
            n_boxed=fingerprint.n_boxed,
            n_outlines=fingerprint.n_outlines,
            n_box_outlines=fingerprint.n_box_outlines,
        )


def choose_model(kinds: ReferenceKinds) -> Decision[str]:
    """Choose the model that suits the references of a dataset, for the architecture "auto".

    - A detector (`retinanet`), if any case has boxes without a mask: a network that learns from
      masks cannot use such a case.
    - A detector with masks as a second target (`retina_unet`), if the masks of a 2-D dataset were
      drawn from boxes, so that their outlines are not those of the lesions. This applies if at
      least 95 % of the tested masks, and at least `FEWEST` of them, are rectangles or ellipses that
      fill their bounding boxes.
    - Otherwise a U-Net, which learns from masks.

    Returns:
        The name of the model. The reason continues the sentence "retinanet, because".
    """
    if kinds.n_boxed:
        cases = count(kinds.n_with_lesions, "case")
        verb = "has" if kinds.n_boxed == 1 else "have"
        reason = f"{kinds.n_boxed} of {cases} with lesions {verb} boxes and no mask"
        return Decision(MODEL_FOR_BOXES, reason)
    n_tested = kinds.n_outlines
    n_boxes = kinds.n_box_outlines  # tested masks that are rectangles or ellipses
    if kinds.dims == 2 and n_tested >= FEWEST and n_boxes >= BOX_SHARE * n_tested:
        reason = (
            f"{n_boxes} of {n_tested} masks with sides of {SHORTEST_SIDE} pixels or more are "
            "rectangles or ellipses that were drawn from boxes"
        )
        return Decision(MODEL_FOR_BOX_OUTLINES, reason)
    return Decision(MODEL_FOR_MASKS, "the references are masks")
