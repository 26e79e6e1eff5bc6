"""Annotation formats that are not read (VinDr-CXR and others): recognition, advice to convert."""

import re
from contextlib import suppress
from pathlib import Path

_START_BYTES = 2**14
_MAX_FILES = 20  # of a suffix and level of folders that are opened
_AS_BOXES = "Write them into boxes.csv with the columns case, label, x0, y0, x1, y1"

# name, suffix of the files, pattern of their text, advice; the first format that fits is named
_FORMATS = (
    (
        "VinDr-CXR",
        ".csv",
        r"\Aimage_id[,;\t]([^\n]*[,;\t])?class_name[,;\t]",
        "Run python examples/vindr_to_boxes.py with this folder, which writes boxes.csv",
    ),
    (
        "the RSNA pneumonia challenge",
        ".csv",
        r"\ApatientId[,;\t]x[,;\t]y[,;\t]width[,;\t]height",
        "Run python examples/rsna_to_boxes.py with this folder, which writes boxes.csv",
    ),
    (
        "COCO",
        ".json",
        r'\A\s*\{.*"(images|annotations|categories)"\s*:\s*\[\s*\{',
        "Name it, relative to the folder, as data.annotations (evaluate annotations=)",
    ),
    (
        "the annotations of CVAT",
        ".xml",
        r"<annotations>",
        "Export the task from CVAT again as COCO 1.0, and call the file annotations.json",
    ),
    (
        "Pascal VOC",
        ".xml",
        r"<annotation\b",
        "Import the files into CVAT and export them as COCO 1.0, or write boxes.csv (case, label, "
        "x0, y0, x1, y1) from xmin, ymin, xmax, ymax; VOC counts pixels from 1 and includes the "
        "last one, so that x0 = xmin - 1, y0 = ymin - 1, x1 = xmax and y1 = ymax",
    ),
    (
        "LabelMe",
        ".json",
        r'"shapes"\s*:\s*\[',
        "Convert the files to COCO, for example with the package labelme2coco, and call the result "
        "annotations.json",
    ),
    (
        "Label Studio",
        ".json",
        r'\A\s*\[\s*\{.*"(annotations|completions|data)"\s*:\s*[\[{]',
        "Draw rotated boxes as polygons, because Label Studio leaves out their rotation, export it "
        "again as COCO, and set data.annotations=result.json",
    ),
    (
        "the box list of NIH ChestX-ray14",
        ".csv",
        r"^Image Index,\s*Finding Label,\s*Bbox",
        f"{_AS_BOXES}: case = Image Index, x0 = x, y0 = y, x1 = x + w, y1 = y + h. Keep only the "
        "listed images, because an image without a row counts as lesion-free",
    ),
    (
        "keras-retinanet",
        ".csv",
        r"^[^,\n]+\.\w+,(\d[\d.]*,){4}[^,\n]+$",
        f"{_AS_BOXES}, in this order: image, class, x1, y1, x2, y2",
    ),
    (
        "YOLO",
        ".txt",
        r"^\d+( [01]?\.\d+){4}\s*$",
        'Write the file data.yaml with the lines "names: [lesion]", "train: images" and '
        '"val: images", and put the text files into labels, the images into images',
    ),
)


def describe_other_format(root: Path) -> str:
    """Return a sentence that names a file in another program's format, and how to convert it.

    The sentence is part of the error message for a folder without known layout. The folder and two
    levels of subfolders are searched. Return "" if no file has such a format.
    """
    # row[1] is the suffix of a format
    texts = {suffix: _read_starts(root, suffix) for suffix in {row[1] for row in _FORMATS}}
    for name, suffix, pattern, advice in _FORMATS:
        for path, text in texts[suffix].items():
            if re.search(pattern, text, re.DOTALL | re.MULTILINE):
                return f"{path} has the format of {name}, which is not read here. {advice}."
    return ""


def _read_starts(root: Path, suffix: str) -> dict[Path, str]:
    """Return the first 16 KiB, as text, of the files with a suffix in a folder and its subfolders.

    No more than 20 files are read in the folder, and 20 in each of two levels of subfolders,
    because the folder may have many thousand files. Files that cannot be opened are left out.
    """
    texts: dict[Path, str] = {}
    for level in ("*", "*/*", "*/*/*"):
        for path in sorted(root.glob(f"{level}{suffix}"))[:_MAX_FILES]:
            with suppress(OSError), path.open("rb") as file:
                texts[path] = file.read(_START_BYTES).decode("utf-8-sig", errors="replace")
    return texts
