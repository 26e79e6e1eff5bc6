"""DICOM files of a folder grouped into scans by series; localiser by description; damaged files.

The scans are series, enhanced files, slices and radiographs.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.errors import ReadError
from lesionseg.io.dicom.elements import Header, text
from lesionseg.io.dicom.headers import (
    SUFFIXES,
    explain_unfit,
    image_header,
    is_radiograph,
    n_frames,
    read_series_uid,
)
from lesionseg.io.dicom.series import series_headers, series_key
from lesionseg.io.files import digest_of

_UID_DIGITS = 8  # digits of the digest that distinguishes the series of a folder
# names of localisers (images on which a scan is planned) that ImageType does not state
_LOCALISER = re.compile(
    r"(?<![a-z])(locali[sz]ers?|scouts?|surveys?|topograms?|3[- ]?pl(ane)?|loc)(?![a-z])", re.I
)


@dataclass(frozen=True)
class DicomScan:
    """A scan in a folder: a series of several files, or a single file.

    Attributes:
        place: The path by which readers read the scan: the folder, `folder/series=…` or the file.
        files: The files with the slices of the scan.
        name: The name of the scan within its folder, for case ids. It is "" for a series if at most
            one series of the folder can be read. One of several readable series has the name
            `<number>_<digest of its UID>`, or only the digest if the number is not decimal. A
            single file has its name without the suffix.
        other_name: The name that a series gets instead if another series is added to the folder or
            removed from it: `<number>_<digest>` for the only series, "" for one of several.
        number: The number of the series, "" if unknown. The following texts are "" if unknown, too.
        study_uid: The UID of the study.
        series_uid: The UID of the series.
        instance_uid: The UID of a single file. "" for a series.
        patient_id: The PatientID, which may identify the patient. No file may contain it unless the
            user asked for it.
        modality: The modality, such as CT.
        description: The description of the series.
        n_slices: The number of slices, including the frames of a file.
        is_radiograph: True for a projection X-ray image.
        is_localiser: True if the descriptions of all files name a localiser, on which other scans
            were planned.
        unfit: The reason why the first file cannot be read as a scan. "" if any of the files can.
        neighbours: All DICOM files in the folder of a series when the folder was listed, to notice
            new files later. Empty for a single file, and if the folder was not listed.
    """

    place: Path
    files: tuple[Path, ...]
    name: str = ""
    other_name: str = ""
    number: str = ""
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str = ""
    patient_id: str = ""
    modality: str = ""
    description: str = ""
    n_slices: int = 1
    is_radiograph: bool = False
    is_localiser: bool = False
    unfit: str = ""
    neighbours: frozenset[Path] = frozenset()

    @property
    def is_series(self) -> bool:
        """True for a series of several files."""
        return len(self.files) > 1


@dataclass(frozen=True)
class DicomFolder:
    """The DICOM files of a folder, grouped by `group_dicom`.

    Attributes:
        scans: The scans.
        damaged: The files whose header cannot be read and that belong to no scan.
        others: The files that are not images, such as reports and segmentations.
    """

    scans: list[DicomScan]
    damaged: list[Path]
    others: list[Path]


def group_dicom(files: Sequence[Path]) -> DicomFolder:
    """Group the DICOM files of one folder into scans.

    - A series of several files is one scan.
    - Each radiograph, and the only file of a series, is a scan of a single file.
    - A file whose header cannot be read may be a slice of a series. It is added to the series whose
      UID it states, or to every series if it states no UID. The reader of the series then reports
      the damage. If there is no such series of several files, or no series of several files can be
      read, the file is `damaged`.
    - A file that is not an image is one of `others`.
    """
    # sort the files by series
    damaged: dict[Path, str] = {}  # the UID of the series that each file states
    others: list[Path] = []
    headers_of_scans: dict[str, dict[Path, Header]] = defaultdict(dict)
    for file in files:
        try:
            header = image_header(file)
        except ReadError:
            damaged[file] = read_series_uid(file)
            continue
        if header is None:
            others.append(file)
        else:
            key = str(file) if is_radiograph(header) else series_key(header)
            headers_of_scans[key][file] = header
    # describe each scan, and add damaged files to the series of several files
    described = {key: describe_headers(headers) for key, headers in headers_of_scans.items()}
    series = {key: scan for key, scan in described.items() if scan.is_series}
    # a series without a usable image does not count, so the other one keeps its short name
    n_readable = sum(not scan.unfit for scan in series.values())
    slice_uids: dict[Path, str] = {}  # of damaged files that may be slices; "" fits every series
    if n_readable:
        slice_uids = {file: uid for file, uid in damaged.items() if uid in ("", *series)}
    unreadable = [file for file in damaged if file not in slice_uids]
    is_only_scan = len(described) + len(unreadable) == 1
    # name the series: by its number only if no other scan of the folder has this number
    n_of_number = Counter(scan.number for scan in described.values())
    for key, scan in series.items():
        folder = scan.files[0].parent
        is_unique = scan.number != "" and n_of_number[scan.number] == 1
        named = folder / f"series={scan.number if is_unique else key}"
        described[key] = replace(
            scan,
            place=folder if is_only_scan else named,
            name="" if n_readable <= 1 else scan.name,
            other_name=scan.name if n_readable <= 1 else "",
            files=(*scan.files, *[file for file, uid in slice_uids.items() if uid in ("", key)]),
            neighbours=frozenset(files),
        )
    return DicomFolder([*described.values()], unreadable, others)


def describe_dicom(place: Path) -> DicomScan:
    """Describe the scan at a path: a folder, a file or `folder/series=…`.

    Other series of the folder are not described. Therefore a series always has the name of one of
    several series, `<number>_<digest>`.

    Raises:
        ReadError: If a header is damaged, or there is no such image.
    """
    return replace(describe_headers(series_headers(place)), place=place)


def describe_headers(headers: Mapping[Path, Header]) -> DicomScan:
    """Describe the scan that consists of several files, or of one file.

    Texts and numbers come from the header of the first file. The scan is unfit or a localiser only
    if all files are. `place` is the first file, and a series has the name `<number>_<digest>`.
    Callers replace both if they know the folder.

    Args:
        headers: The header of each file of the scan.
    """
    file, header = next(iter(headers.items()))
    is_series = len(headers) > 1
    number = text(header, "SeriesNumber")
    digits = digest_of(series_key(header))[:_UID_DIGITS]
    name = f"{number}_{digits}" if number.isdecimal() else digits
    are_all_unfit = all(map(explain_unfit, headers.values()))
    return DicomScan(
        place=file,
        files=tuple(headers),
        name=name if is_series else dicom_stem(file),
        number=number,
        study_uid=text(header, "StudyInstanceUID"),
        series_uid=text(header, "SeriesInstanceUID"),
        instance_uid="" if is_series else text(header, "SOPInstanceUID"),
        patient_id=text(header, "PatientID"),
        modality=text(header, "Modality"),
        description=text(header, "SeriesDescription"),
        n_slices=sum(map(n_frames, headers.values())),
        is_radiograph=is_radiograph(header),
        is_localiser=all(
            _LOCALISER.search(text(header, "SeriesDescription")) for header in headers.values()
        ),
        unfit=explain_unfit(header) if are_all_unfit else "",
    )


def dicom_stem(file: Path) -> str:
    """Return the name of a file without the suffix, if that is one of DICOM.

    Other dots belong to the name, because files such as `1.2.840` are named by a UID.
    """
    return file.stem if file.suffix.lower() in SUFFIXES else file.name
