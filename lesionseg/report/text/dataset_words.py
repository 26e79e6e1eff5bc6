"""The words of a dataset's report."""

from collections.abc import Mapping

TITLE = "Dataset report"
FINDINGS = "What was found"
NOTHING = "Nothing was found to be wrong."
CASES = "The cases"
SIZES = "Lesion sizes"
INTENSITIES = "Intensities"
SPACINGS = "Spacings"
LEGEND = (
    "Slice with the most lesion voxels (3-D; patient's right on the left, front on top) or the "
    "whole image; lesions are outlined."
)
PSEUDONYMS = (
    "Cases are numbered in the dataset's order. No name, path, date or identifier of the files is "
    "on this page; the command that wrote it prints them with identifiers=true."
)
BURNED_IN = (
    "Pictures may show letters that are burned into their pixels: look through them before the "
    "page is passed on."
)
SIZE_TEXT = "Equivalent diameters of all reference lesions."
INTENSITY_TEXT = (
    "From the 0.5 to the 99.5 percentile of each case's voxels above the image's lowest value; the "
    "dot is the median."
)
RADIOGRAPHS = "How the radiographs were taken"
TAKEN: tuple[str, ...] = ("laterality", "view", "intent", "pixel size")
RADIOGRAPHS_TEXT = (
    "As the files state it. A pixel size is calibrated, or the detector's divided by the "
    "magnification, or at the detector (things look larger than they are), or unknown."
)
NOT_STATED = "not stated"
PIXELS = "pixels"
SPACING_TEXT = "Voxel size along each axis."

# kind of finding: what it means to whoever reads the page
MEANING: Mapping[str, str] = {
    "listed": "The dataset's list says of a case what cannot be.",
    "unreadable": "A file cannot be read.",
    "channels": "Channel files are missing or too many.",
    "geometry": "Files of the case do not lie on one grid, or slices are missing or tilted.",
    "not_finite": "The image holds NaN or infinite voxels.",
    "labels": "The reference holds values that are no labels, or does not fit its table.",
    "constant": "A channel has the same value everywhere.",
    "duplicate": "An image is there twice.",
    "same_patient": "The same patient seems to be there under two groups: a split could cut them.",
    "leak": "The same image or patient is in training and in the test role.",
    "spacing": "The voxel size is far from that of the other cases.",
    "orientation": "The patient lies otherwise than in most cases (turned when prepared).",
    "unoriented": "The file does not say how the patient lay: left and right may be swapped.",
    "burned_in": "Letters are burned into the pixels, says the file: perhaps the patient's name.",
    "detector": "Sizes are measured at the detector: things in the body look larger than they are.",
    "remark": "The file's reader remarked on it.",
    "lesion_free": "The reference is empty: the case counts as lesion-free.",
    "unlabelled": "There is no reference.",
}
SEVERITY: Mapping[str, str] = {
    "error": "cannot be used",
    "warning": "look at it",
    "note": "for information",
}


def counts(n_cases: int, n_lesions: int, n_free: int) -> str:
    """The first sentence."""
    return (
        f"{n_cases} {_cases(n_cases)}, {n_lesions} lesions; {n_free} {_cases(n_free)} without any."
    )


def unlisted(n: int) -> str:
    """Entries that are no case which could be looked at; nothing for none."""
    entries = "entry" if n == 1 else "entries"
    return f" {n} {entries} of the list could not be taken as a case." if n else ""


def alt_sizes(n: int) -> str:
    """What the size chart shows, for those who do not see it."""
    return f"Histogram of the equivalent diameters of {n} lesions."


def _cases(n: int) -> str:
    return "case" if n == 1 else "cases"
