"""Finding the scans in a folder of DICOM files: series, enhanced files, slices and radiographs."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
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

_UID_DIGITS = 8  # digits of the digest that distinguishes the series of a folder
# names of localisers (images on which a scan is planned) that ImageType does not state
_LOCALISER = re.compile(
    r"(?<![a-z])(locali[sz]ers?|scouts?|surveys?|topograms?|3[- ]?pl(ane)?|loc)(?![a-z])", re.I
)


@dataclass(frozen=True)
class DicomScan:
    """A scan in a folder: a series of several files, or a single file.

    Attributes:
        place: The path that readers take: the folder, `folder/series=…` or the file.
        files: The files with its slices.
        name: The name of the scan within its folder: "" for the only series, `<number>_<digest of
            its UID>` for one of several, the stem of a single file.
        other_name: The alternative to `name`: the `<number>_<digest>` of the only series, or "" of
            one of several. A series gets this name if another series is added or removed. None for
            a single file.
        study_uid: The UID of the study, "" if unknown. The same applies to the other texts.
        series_uid: The UID of the series.
        instance_uid: The UID of a single file. "" for a series.
        modality: The modality, such as CT.
        description: The description of the series.
        n_slices: The number of slices, including the frames of a file.
        is_radiograph: True for a projection X-ray image.
        is_localiser: True if the description names a localiser, on which other scans were planned.
        unfit: The reason why it cannot be read, "" if it can be read.
        fault: The reason why its header cannot be read, "" if it can be read.
        neighbours: The DICOM files of a series' folder when it was listed. Empty for a single file.
    """

    place: Path
    files: tuple[Path, ...]
    name: str = ""
    other_name: str | None = None
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str = ""
    modality: str = ""
    description: str = ""
    n_slices: int = 1
    is_radiograph: bool = False
    is_localiser: bool = False
    unfit: str = ""
    fault: str = ""
    neighbours: frozenset[Path] = frozenset()


def find_dicom_scans(files: Sequence[Path]) -> tuple[list[DicomScan], list[Path]]:
    """Sort the DICOM files of one folder into scans.

    A series of several files is one scan. A series of one file and each radiograph are scans of a
    single file. A file whose header cannot be read becomes a scan with a `fault`, unless it may be
    a slice of a series of several files in the folder. It then belongs to the files of this series,
    whose reader reports it. A damaged file may be such a slice if it states the UID of the series
    or no UID.

    Args:
        files: DICOM files of one folder.

    Returns:
        The scans, and the files that are not images.
    """
    damaged = dict[Path, str]()  # the faults by file
    others = list[Path]()
    radiographs = list[tuple[Path, Header]]()
    series: dict[str, dict[Path, Header]] = defaultdict(dict)
    for file in files:
        try:
            header = image_header(file)
        except ReadError as error:
            damaged[file] = str(error)
            continue
        if header is None:
            others.append(file)
        elif is_radiograph(header):
            radiographs.append((file, header))
        else:
            series[series_key(header)][file] = header
    single_files = list(radiographs)
    series_of_several = list[dict[Path, Header]]()
    for headers in series.values():
        if len(headers) == 1:
            single_files += headers.items()
        else:
            series_of_several.append(headers)
    # a series without a usable image does not count, so the other one keeps its short name
    n_readable = sum(not _are_all_unfit(headers) for headers in series_of_several)
    damaged_slices = _find_damaged_slices(damaged, series_of_several) if n_readable else {}
    scans = [_describe_file(file, header) for file, header in single_files]
    for file, fault in damaged.items():
        if file not in damaged_slices:
            scans.append(DicomScan(file, (file,), name=_stem(file), fault=fault))
    is_only_scan = len(scans) + len(series_of_several) == 1
    # a path names a series by its number only if no other scan of the folder has this number
    one_header_of_each = [header for _, header in single_files]
    one_header_of_each += [next(iter(headers.values())) for headers in series_of_several]
    numbers = [text(header, "SeriesNumber") for header in one_header_of_each]
    neighbours = frozenset(files)
    for headers in series_of_several:
        scan = _describe_series(
            headers, numbers, is_only_series=n_readable <= 1, is_only_scan=is_only_scan
        )
        own_uids = ("", _key_of_series(headers))
        own_damaged = [file for file, uid in damaged_slices.items() if uid in own_uids]
        all_files = (*scan.files, *own_damaged)
        scans.append(replace(scan, files=all_files, neighbours=neighbours))
    return scans, others


def _find_damaged_slices(
    damaged: Iterable[Path], series_of_several: Iterable[Mapping[Path, "Header"]]
) -> dict[Path, str]:
    """Return the damaged files that may be slices of a series, with the UID that each states.

    The UID is "" if it cannot be read.
    """
    known_uids = ["", *map(_key_of_series, series_of_several)]
    uids = {file: read_series_uid(file) for file in damaged}
    return {file: uid for file, uid in uids.items() if uid in known_uids}


def describe_dicom(place: Path) -> DicomScan:
    """Describe the scan at a path: a folder, a file or `folder/series=…`.

    Raises:
        ReadError: A header is damaged, or there is no such image.
    """
    headers = series_headers(place)
    if len(headers) == 1:
        ((file, header),) = headers.items()
        return replace(_describe_file(file, header), place=place)
    # The other series of the folder are not read, so this one may not be the only one. Without
    # their numbers, its name contains its UID.
    scan = _describe_series(headers, numbers=[], is_only_series=False, is_only_scan=False)
    return replace(scan, place=place)


def _describe_file(file: Path, header: "Header") -> DicomScan:
    """Describe the scan of a single file."""
    return DicomScan(
        place=file,
        files=(file,),
        name=_stem(file),
        study_uid=text(header, "StudyInstanceUID"),
        series_uid=text(header, "SeriesInstanceUID"),
        instance_uid=text(header, "SOPInstanceUID"),
        modality=text(header, "Modality"),
        description=text(header, "SeriesDescription"),
        n_slices=n_frames(header),
        is_radiograph=is_radiograph(header),
        is_localiser=_is_localiser(header),
        unfit=explain_unfit(header),
    )


def _describe_series(
    headers: Mapping[Path, "Header"],
    numbers: Sequence[str],
    *,
    is_only_series: bool,
    is_only_scan: bool,
) -> DicomScan:
    """Describe the scan of a series of several files.

    Args:
        headers: The headers of its files.
        numbers: The series numbers of all scans in the folder.
        is_only_series: True if the folder contains no other readable series.
        is_only_scan: True if the folder contains no other scan and no file of another scan.
    """
    file, header = next(iter(headers.items()))
    number = text(header, "SeriesNumber")
    key_of_series = series_key(header)
    is_unique = number != "" and numbers.count(number) == 1
    key = number if is_unique else key_of_series
    digits = sha256(key_of_series.encode()).hexdigest()[:_UID_DIGITS]
    own_name = f"{number}_{digits}" if number.isdecimal() else digits
    return DicomScan(
        place=file.parent if is_only_scan else file.parent / f"series={key}",
        files=tuple(headers),
        name="" if is_only_series else own_name,
        other_name=own_name if is_only_series else "",
        study_uid=text(header, "StudyInstanceUID"),
        series_uid=text(header, "SeriesInstanceUID"),
        modality=text(header, "Modality"),
        description=text(header, "SeriesDescription"),
        n_slices=sum(map(n_frames, headers.values())),
        is_localiser=all(map(_is_localiser, headers.values())),
        unfit=explain_unfit(header) if _are_all_unfit(headers) else "",
    )


def _key_of_series(headers: Mapping[Path, "Header"]) -> str:
    return series_key(next(iter(headers.values())))


def _are_all_unfit(headers: Mapping[Path, "Header"]) -> bool:
    return all(map(explain_unfit, headers.values()))


def _is_localiser(header: "Header") -> bool:
    """Return True if the description of the series names a localiser."""
    return _LOCALISER.search(text(header, "SeriesDescription")) is not None


def _stem(file: Path) -> str:
    """Return the name of a file without a DICOM suffix. Other dots belong to the name."""
    return file.stem if file.suffix.lower() in SUFFIXES else file.name
