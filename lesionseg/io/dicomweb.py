"""A DICOMweb server (a PACS): scans are found by QIDO, fetched by WADO, results stored by STOW.

User and password, or a token, come from variables of the environment or from a netrc file. They
are never part of an address, a message or a result.
"""

import logging
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from lesionseg.config import DICOMWEB_SCHEMES
from lesionseg.core import CaseFiles
from lesionseg.errors import (
    ConfigError,
    DatasetError,
    LesionsegError,
    OutputError,
    ReadError,
    ResourceError,
    count,
    pip_install,
    suggest,
)
from lesionseg.io.dicom.elements import Header, text
from lesionseg.io.dicom.grouping import DicomScan, describe_headers
from lesionseg.io.dicom.headers import NO_IMAGE, is_radiograph, n_frames, read_header
from lesionseg.io.files import atomic_path, digest_of
from lesionseg.io.scans import UNREADABLE, FoundScans, Scan, dicom_scan, leave_out

if TYPE_CHECKING:
    from dicomweb_client.web import DICOMwebClient
    from requests import PreparedRequest

logger = logging.getLogger(__name__)

USER = "DICOMWEB_USER"
PASSWORD = "DICOMWEB_PASSWORD"
TOKEN = "DICOMWEB_TOKEN"
_CREDENTIALS = f"Set {USER} and {PASSWORD}, or {TOKEN}, or add the host to ~/.netrc."
_PATH = re.compile(r"(?P<service>.*?)(/studies/(?P<study>[\d.]+)(/series/(?P<series>[\d.]+))?)?/*")
_UID = re.compile(r"\d[\w.-]{0,63}")  # some devices deviate from the standard; no path separators
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_LOCAL = re.compile(r"localhost|127(\.\d+){3}|::1")
# the elements of an answer that are read
_TAGS = (
    "00080016", "00080018", "00080060", "0008103E", "0020000D", "0020000E", "00200011", "00280008",
)  # fmt: skip
_TIMEOUT_SECONDS = (10.0, 120.0)  # to connect, and to wait for the next bytes
_ATTEMPTS = 3
_ANY_SYNTAX = (("application/dicom", "*"),)  # as the server stores the images


class DicomWeb:
    """A client of a DICOMweb service, and the series that are searched.

    A connection without encryption gives a warning, except for one to this computer.

    Attributes:
        address: The address.
        study_uid: The study to which the search is limited, or None.
        filters: The filters of the search, by keyword or tag.
        url: The URL of the service.

    Args:
        setting: The name of the setting, for messages: `input` or `send`.
        address: `dicomweb://host[:port]/path[/studies/UID[/series/UID]][?Keyword=value&…]`. The
            scheme `dicomweb` means HTTPS, `dicomweb+http` means HTTP without encryption. For
            `send`, only the service.

    Raises:
        ConfigError: The address contains a user or password, is incomplete, or names more than the
            service for `send`. Or a filter is not the keyword or tag of a DICOM attribute. Some
            servers ignore such a filter and return all series. Or the package dicomweb-client is
            not installed.
    """

    def __init__(self, setting: str, address: str) -> None:
        self.address = address
        try:
            parts = urlsplit(address)
        except ValueError:  # its text may quote a password
            raise ConfigError(
                f"{setting}: this is not an address. Write dicomweb://host/path."
            ) from None
        host = parts.netloc.rpartition("@")[2]
        shown = f"{setting}={parts.scheme}://{host}{parts.path}"
        if host != parts.netloc:
            raise ConfigError(
                f"{shown}: an address cannot contain a user or a password, because logs show it. "
                f"Remove them. {_CREDENTIALS}"
            )
        match = _PATH.fullmatch(parts.path)
        if (
            not parts.hostname
            or parts.fragment
            or match is None
            or "/studies/" in f"{match['service']}/"
        ):
            raise ConfigError(
                f"{shown}: this is not the address of a DICOMweb service. Write "
                "dicomweb://host/path, and after it nothing, /studies/UID, or "
                "/studies/UID/series/UID; filters follow as ?Modality=MR&StudyDate=20260107"
            )
        if setting == "send" and (match["study"] or parts.query):
            raise ConfigError(
                f"{shown}: name only the service, without studies and filters. Each result belongs "
                "to the study of its scan."
            )
        self.study_uid: str | None = match["study"]
        self.filters = dict(parse_qsl(parts.query, keep_blank_values=True))
        if match["series"]:
            self.filters["SeriesInstanceUID"] = match["series"]
        self.url = f"{DICOMWEB_SCHEMES[parts.scheme]}://{host}{match['service']}"
        self._client = _make_client(shown, self.url)
        _check_attributes(shown, self.filters)
        if self.url.startswith("http:") and not _LOCAL.fullmatch(parts.hostname or ""):
            logger.warning(
                "%s: the connection is not encrypted, so others on the network can read images "
                "and passwords. Use dicomweb:// if the server supports HTTPS.",
                shown,
            )

    def search_series(self) -> list[Header]:
        """Return study UID, series UID, modality, number and description of each series.

        Raises:
            ResourceError: The server cannot be searched.
        """
        with self._requests("the search failed"):
            found = self._client.search_for_series(
                self.study_uid, search_filters=self.filters, get_remaining=True
            )
            return [_to_header(item) for item in found]

    def search_instances(self, series: Header) -> list[Header]:
        """Return the images of a series, sorted by UID, each with the elements of the series.

        Raises:
            ResourceError: The server cannot be searched, or states a UID that is not one.
        """
        study_uid = text(series, "StudyInstanceUID")
        series_uid = text(series, "SeriesInstanceUID")
        with self._requests(f"the search for the images of series {series_uid} failed"):
            found = self._client.search_for_instances(study_uid, series_uid, get_remaining=True)
            headers = [_to_header(item) for item in found]
        instances = {text(header, "SOPInstanceUID"): header for header in headers}
        for uid in (study_uid, series_uid, *instances):
            if not _UID.fullmatch(uid):  # UIDs become names of files
                raise ResourceError(f"{self.address}: {uid!r} is not a UID.")
        for header in instances.values():
            for element in series:
                header.setdefault(element.tag, element)
        return [instances[uid] for uid in sorted(instances)]

    def find_scans(self, folder: Path, unwanted: Callable[[Scan], str]) -> FoundScans:
        """Find the scans at the address. No image is fetched.

        The case id of a series is its UID, and that of a radiograph also has the UID of the image.
        A series whose images cannot be listed is a scan with an error. Series of other objects,
        such as reports and segmentations, are skipped.

        Args:
            folder: The folder into which the scans will be fetched.
            unwanted: Returns the reason why a scan is not meant to be predicted, or "".

        Raises:
            ResourceError: The server cannot be searched.
            DatasetError: There is no series of images at the address.
        """
        # of equal series in two answers, the last one
        series = {
            text(header, "SeriesInstanceUID"): header
            for header in self.search_series()
            if text(header, "Modality") not in NO_IMAGE
        }
        scans: list[Scan] = []
        for uid, header in series.items():
            try:
                found = _scans_of_series(self, header, folder)
            except ReadError as error:
                scan = Scan(CaseFiles(uid, (), group=uid), uid)
                scans.append(scan.add_finding(UNREADABLE, str(error)))
                continue
            scans += [leave_out(scan, unwanted) for scan in found]
        if not scans:
            raise DatasetError(
                f"{self.address}: the server has no series of images there. Check UIDs and filters."
            )
        return FoundScans(folder, folder, tuple(sorted(scans, key=lambda scan: scan.key)))

    def fetch(self, study_uid: str, series_uid: str, files: Sequence[Path]) -> None:
        """Fetch images of a series into files, each of which is named `<SOP Instance UID>.dcm`.

        Raises:
            ResourceError: The server cannot be reached, or does not send all of these images.
            OutputError: A file cannot be written.
        """
        missing = {file.stem: file for file in files}
        with self._requests(f"series {series_uid} cannot be fetched"):
            for image in self._retrieve(study_uid, series_uid, list(missing)):
                file = missing.pop(str(image.SOPInstanceUID), None)
                if file is not None:
                    with atomic_path(file) as temporary:
                        image.save_as(temporary)
        if missing:
            raise ResourceError(
                f"{self.address}: the server did not send {len(missing)} of "
                f"{count(len(files), 'image')} of series {series_uid}. Run the command again."
            )

    def _retrieve(
        self, study_uid: str, series_uid: str, instance_uids: Sequence[str]
    ) -> Iterator[Header]:
        """Yield the image if only one is wanted, otherwise all images of the series."""
        if len(instance_uids) == 1:
            yield self._client.retrieve_instance(
                study_uid, series_uid, instance_uids[0], media_types=_ANY_SYNTAX
            )
        else:
            yield from self._client.iter_series(study_uid, series_uid, media_types=_ANY_SYNTAX)

    def store(self, files: Sequence[Path]) -> list[str]:
        """Store DICOM files in one request and return their SOP Instance UIDs.

        Raises:
            ResourceError: The server cannot be reached or refuses the request.
            OutputError: The server does not store one of them.
            ReadError: A file is missing or damaged.
        """
        datasets = [read_header(file, pixels=True) for file in files]
        with self._requests("the results cannot be stored"):
            answer = self._client.store_instances(datasets)
        if answer.get("FailedSOPSequence"):
            raise OutputError(
                f"{self.address}: the server did not store all results. Its log may have the "
                "reason."
            )
        return [str(dataset.SOPInstanceUID) for dataset in datasets]

    @contextmanager
    def _requests(self, failure: str) -> Iterator[None]:
        """Convert errors of requests into `ResourceError`, so that the next run tries again.

        After an error, the next request is made only once. After a request without error, later
        ones are repeated again if they fail.

        Args:
            failure: The request that failed, for the message.
        """
        try:
            yield
        except (LesionsegError, MemoryError):
            raise
        except Exception as error:  # requests, urllib3, pydicom and others
            self._client.set_http_retry_params(retry=False)  # the next request fails at once
            raise ResourceError(f"{self.address}: {failure}: {_explain(error)}") from error
        self._client.set_http_retry_params(max_attempts=_ATTEMPTS)


def _make_client(shown: str, url: str) -> "DICOMwebClient":
    """Return a client with the token, or user and password, of the environment.

    Without them, requests reads the netrc file. The logs of the packages are switched off. `shown`
    is the setting, for messages.

    Raises:
        ConfigError: The package dicomweb-client is not installed.
    """
    try:
        from dicomweb_client import session_utils
        from dicomweb_client.web import DICOMwebClient
    except ImportError as error:
        raise ConfigError(
            f"{shown}: the package {error.name} is not installed. Run {pip_install('pacs')}."
        ) from error
    for name in ("dicomweb_client", "pydicom"):  # their messages may quote patient data
        logging.getLogger(name).setLevel(logging.CRITICAL)
    session = session_utils.create_session()
    token, user, password = map(os.environ.get, (TOKEN, USER, PASSWORD))
    if token:
        session.auth = partial(_add_token, token)
    elif user and password:
        session.auth = (user, password)
    client = DICOMwebClient(url, session=session, permissive_uid=True, timeout=_TIMEOUT_SECONDS)
    client.set_http_retry_params(max_attempts=_ATTEMPTS)
    return client


def _add_token(token: str, request: "PreparedRequest") -> "PreparedRequest":
    """Add the token to a request. requests removes it if the server redirects to another host."""
    request.headers["Authorization"] = f"Bearer {token}"
    return request


def _check_attributes(shown: str, names: Iterable[str]) -> None:
    """Raise `ConfigError` for a name that is neither a keyword of a DICOM attribute nor a tag."""
    from pydicom.datadict import keyword_dict

    for name in names:
        if name not in keyword_dict and not _TAG.fullmatch(name):
            near = suggest(name, keyword_dict)
            raise ConfigError(f"{shown}: there is no DICOM attribute {name!r}.{near}")


def _explain(error: Exception) -> str:
    """Return the reason why a request failed, and the remedy."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the server refuses access (status {status}). {_CREDENTIALS}"
        if status >= 500:
            return f"the server fails with status {status}. Its log may have the reason."
        return f"the server answers with status {status}. Check path, UIDs and filters."
    if isinstance(error, exceptions.SSLError):
        return (
            "no encrypted connection. Name the hospital's certificates by REQUESTS_CA_BUNDLE, or "
            "write dicomweb+http:// if the server supports only HTTP."
        )
    if isinstance(error, exceptions.ConnectionError | exceptions.Timeout):
        return "the server cannot be reached. Check host, port and network."
    return f"{error!r}. The log of the server may have the reason."


def _to_header(item: Mapping[str, Any]) -> Header:
    """Return the elements of an answer that are read. Names of patients are not among them."""
    from pydicom import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # users cannot change how vendors deviate from the standard
        return Dataset.from_json({tag: item[tag] for tag in _TAGS if tag in item})


@dataclass(frozen=True, kw_only=True)
class RemoteScan(Scan):
    """A DICOM scan on a server. Its files are fetched when they are needed.

    `release` removes them.
    """

    dicom: DicomScan
    service: DicomWeb

    @property
    def contents(self) -> list[tuple[Path, ...]]:
        """The files. They are fetched first."""
        self.fetch()
        return super().contents

    def state(self) -> str:
        """Return a digest of the SOP Instance UIDs.

        The standard does not allow an image to change under its UID. The scan is therefore not
        fetched if an earlier run has read these images.
        """
        return digest_of("\n".join(file.name for file in self.dicom.files))[:16]

    def require_unchanged(self, state: str) -> None:
        """Do nothing, because no other program writes the fetched files."""

    @property
    def is_present(self) -> bool:
        """True if the files have been fetched."""
        return all(file.is_file() for file in self.dicom.files)

    def fetch(self) -> None:
        """Fetch the files, unless they are present. See `DicomWeb.fetch`."""
        if not self.is_present:
            dicom = self.dicom
            self.service.fetch(dicom.study_uid, dicom.series_uid, dicom.files)

    def release(self) -> None:
        """Remove the fetched files, and their folder if it is then empty."""
        files = self.dicom.files
        for file in files:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # never fetched, or files of another scan of the series remain
            files[0].parent.rmdir()


def _scans_of_series(service: DicomWeb, series: Header, folder: Path) -> list[Scan]:
    """Return the scans of a series: each radiograph, and the other images together.

    Raises:
        ResourceError: The server cannot be searched.
    """
    place = folder / text(series, "SeriesInstanceUID")
    headers_of_scans: dict[str, dict[Path, Header]] = defaultdict(dict)
    for header in service.search_instances(series):
        uid = text(header, "SOPInstanceUID")
        headers_of_scans[uid if is_radiograph(header) else ""][place / f"{uid}.dcm"] = header
    scans: list[Scan] = []
    for uid, headers in headers_of_scans.items():
        dicom = describe_headers(headers)
        has_frames = any(n_frames(header) > 1 for header in headers.values())
        dicom = replace(
            dicom,
            name=uid,
            place=place if dicom.is_series else dicom.place,
            # the answer does not state the positions of frames
            unfit="" if has_frames else dicom.unfit,
        )
        scans.append(RemoteScan(**vars(dicom_scan(dicom, folder)), service=service))
    return scans
