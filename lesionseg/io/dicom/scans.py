"""The scans in a folder of DICOM files: series, enhanced files, single slices and radiographs."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from lesionseg.errors import ReadError
from lesionseg.io.dicom.elements import Header, text
from lesionseg.io.dicom.headers import (
    SUFFIXES,
    image_header,
    is_radiograph,
    n_frames,
    stated_series,
    unfit,
)
from lesionseg.io.dicom.series import series_headers

_UID_DIGITS = 8  # of the digest that tells the series of a folder apart
# what scanners call the images that a scan is planned on, where ImageType does not say so
_LOCALISER = re.compile(
    r"(?<![a-z])(locali[sz]ers?|scouts?|surveys?|topograms?|3[- ]?pl(ane)?|loc)(?![a-z])", re.I
)


@dataclass(frozen=True)
class DicomScan:
    """A scan in a folder: a series of several files, or a single file.

    Attributes:
        place: what readers take: the folder, `folder/series=…` or the file.
        name: distinguishes the scan within its folder: "" for the only series,
            `<number>_<digest of its UID>` for one of several, the stem of a single file.
        other_name: the name that a series would have if the folder had one series more or less;
            None for a single file.
        instance_uid: of a single file, else "".
        n_slices: the number of slices, frames of a file included.
        is_localiser: the description says that other scans were planned on it.
        unfit: why it is never read, "" if it can be.
        fault: why its header cannot be read, "" if it can be.
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


def find_dicom_scans(files: Sequence[Path]) -> tuple[list[DicomScan], list[Path]]:
    """Sort the DICOM files of one folder into scans; the second list has those that are no image.

    A file whose header cannot be read is a scan with a `fault`. If there is a series next to it, it
    may be a slice of that, whose reader then names it: it is no scan of its own, unless it states
    another series.
    """
    damaged = list[DicomScan]()
    others = list[Path]()
    alone = list[tuple[Path, Header]]()
    series: dict[str, dict[Path, Header]] = defaultdict(dict)
    for file in files:
        try:
            header = image_header(file)
        except ReadError as error:
            damaged.append(DicomScan(file, (file,), name=_stem(file), fault=str(error)))
            continue
        if header is None:
            others.append(file)
        elif is_radiograph(header):
            alone.append((file, header))
        else:
            series[text(header, "SeriesInstanceUID")][file] = header
    scans = [_single(file, header) for file, header in alone]
    whole = dict[str, dict[Path, Header]]()
    for uid, headers in series.items():
        if len(headers) == 1:
            scans += [_single(file, header) for file, header in headers.items()]
        else:
            whole[uid] = headers
    firsts = [header for _, header in alone]
    firsts += [next(iter(headers.values())) for headers in series.values()]
    numbers = [text(header, "SeriesNumber") for header in firsts]
    n_fit = sum(not all(map(unfit, headers.values())) for headers in whole.values())
    for headers in whole.values():
        scans.append(_series(headers, numbers, is_only_series=n_fit <= 1))
    has_series = any(not scan.unfit for scan in scans if len(scan.files) > 1)
    if has_series:
        damaged = [each for each in damaged if stated_series(each.place) not in ("", *series)]
    return scans + damaged, others


def describe_dicom(place: Path) -> DicomScan:
    """Return the scan that a folder, a file or `folder/series=…` names. Raises `ReadError`."""
    headers = series_headers(place)
    if len(headers) == 1:
        ((file, header),) = headers.items()
        return replace(_single(file, header), place=place)
    return replace(_series(headers, [], is_only_series=False), place=place)


def _single(file: Path, header: "Header") -> DicomScan:
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
        unfit=unfit(header),
    )


def _series(
    headers: Mapping[Path, "Header"], numbers: Sequence[str], *, is_only_series: bool
) -> DicomScan:
    """Return the scan of a series of several files; `numbers`: of all images in its folder."""
    file, header = next(iter(headers.items()))
    number = text(header, "SeriesNumber")
    uid = text(header, "SeriesInstanceUID")
    key = number if number and numbers.count(number) == 1 else uid
    digits = sha256(uid.encode()).hexdigest()[:_UID_DIGITS]
    own_name = f"{number}_{digits}" if number.isdecimal() else digits
    is_unfit = all(map(unfit, headers.values()))
    return DicomScan(
        place=file.parent if len(numbers) == 1 else file.parent / f"series={key}",
        files=tuple(headers),
        name="" if is_only_series else own_name,
        other_name=own_name if is_only_series else "",
        study_uid=text(header, "StudyInstanceUID"),
        series_uid=uid,
        modality=text(header, "Modality"),
        description=text(header, "SeriesDescription"),
        n_slices=sum(map(n_frames, headers.values())),
        is_localiser=all(map(_is_localiser, headers.values())),
        unfit=unfit(header) if is_unfit else "",
    )


def _is_localiser(header: "Header") -> bool:
    """Return True if the description says that a scan was planned on this image."""
    return _LOCALISER.search(text(header, "SeriesDescription")) is not None


def _stem(file: Path) -> str:
    return file.stem if file.suffix.lower() in SUFFIXES else file.name
