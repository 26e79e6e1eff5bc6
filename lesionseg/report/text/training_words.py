"""The training: who taught the network, and which references are worth a second look."""

from collections.abc import Mapping, Sequence

PART_NAMES = ("lesions", "hardest 1 % of background", "easy background")
AXES_HIGHEST = ("highest p in a lesion", "highest p in background")
AXIS_THEIR_LOSS = "share of their loss"
BALANCE_TEXT = (
    "Which voxels the focal loss listened to, over training. Above: shares of the loss and of its "
    "gradient that came from lesions, from the hardest 1 % of background and from the easy rest. "
    "Below: the highest probability in a lesion (mean over the lesions of a batch) and anywhere "
    "in background. Healthy training starts with lesions alone, then shares the gradient between "
    "lesions and hard background; a lesion curve that falls is a network forgetting lesions."
)
CURVES_TEXT = (
    "Cumulative loss at the end of training, voxels sorted from easy to hard (as figure 4 of Lin "
    "et al. 2017). The closer a curve keeps to the lower right corner, the fewer voxels hold all "
    "of the loss."
)
AXIS_SIDE_ACROSS = "side across, in plane (mm)"
AXIS_SIDE_ALONG = "side along the first axis (mm)"
LESIONS_OF_TRAINING = "lesions learnt from"
AUDIT_TITLE = "The first places"
AUDIT_TEXT = (
    "Places in the training scans where the network kept disagreeing with the reference while it "
    "learnt: reference lesions that it did not see (there may be none, or it lies beside), and "
    "places that it took for lesions (the reference may miss one). A place high in the list may "
    "just as well be a rare or faint lesion, or something that looks like one: the list tells a "
    "person where to look first, it corrects nothing. All rows: label_audit.csv."
)
AUDIT_ORDER = "the most suspicious first"
HEADINGS_AUDIT = ("Rank", "Scan", "What", "Size", "Centre (mm)", "Suspicion")
AUDIT_KINDS: Mapping[str, str] = {
    "lesion": "lesion not seen",
    "spot": "lesion missing in the reference?",
}


def anchors_text(mean_iou: float, small_recall: float) -> str:
    """Below the chart of the anchors' fit."""
    return (
        "The boxes from which the detector starts (anchors), against the lesions it learns from: "
        f"a lesion's IoU with the best of them is {mean_iou:.2f} on average, and "
        f"{small_recall:.0%} of the smallest tenth of lesions reach 0.5."
    )


def alt_anchors(n_lesions: int, n_sizes: int) -> str:
    """The chart of the anchors' fit in words."""
    return f"Sides of {n_lesions} lesions and of {n_sizes} anchor sizes."


def anchor_level(number: int) -> str:
    """A level of anchors in the legend, the finest first."""
    return f"anchors, level {number}"


def share_of(what: str) -> str:
    """Beside a chart of shares of the loss or its gradient."""
    return f"share of the {what}"


def axis_voxels(name: str) -> str:
    """Below a cumulative curve."""
    return f"{name} voxels, easiest first (%)"


def alt_course(gradient: Sequence[float]) -> str:
    """The chart of shares in words, from the last shares of the gradient."""
    if not gradient:
        return "Highest probabilities in lesions and in background over training."
    shares = (f"{name} {share:.0%}" for name, share in zip(PART_NAMES, gradient, strict=True))
    parts = ", ".join(shares)
    return f"Shares of loss and gradient over training; of the gradient at the end: {parts}."


def alt_cumulative(tenths: Mapping[str, float]) -> str:
    """The cumulative curves in words, from the share that the hardest tenth of voxels holds."""
    parts = (
        f"the hardest tenth of {name} voxels holds {share:.0%} of their loss"
        for name, share in tenths.items()
    )
    return f"Cumulative loss: {'; '.join(parts)}."


def training_scan(n: int) -> str:
    """The pseudonym of a scan that was trained on."""
    return f"training scan {n}"


def rank(n: int) -> str:
    """Which row of the audit a picture belongs to."""
    return f"rank {n}"


def caption_suspect(kind: str, size: str, probabilities: Sequence[float]) -> str:
    """Beside a picture of the audit: what it is, and its probability at each look."""
    p = " → ".join(f"{value:.2f}" for value in probabilities)
    return f"{AUDIT_KINDS.get(kind, kind)}, {size}; probability {p}"
