"""DICOMweb (PACS): search, fetch, store; credentials, time-outs, retries, size limits.

Scans are found by QIDO and fetched by WADO, and results are stored by STOW.

User and password, or a token, come from variables of the environment or from a netrc file. They
are never part of an address, a message or a result.
"""

import logging
import os
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urljoin

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
from lesionseg.io import (
    UNREADABLE,
    FoundScans,
    Scan,
    atomic_path,
    dicom_scan,
    digest_of,
)
from lesionseg.io.dicom import (
    NO_IMAGE,
    DicomScan,
    describe_headers,
    is_radiograph,
    read_header,
    text,
)

if TYPE_CHECKING:
    from dicomweb_client.web import DICOMwebClient
    from pydicom.dataset import Dataset
    from requests import PreparedRequest, Response

logger = logging.getLogger(__name__)

USER = "DICOMWEB_USER"
PASSWORD = "DICOMWEB_PASSWORD"
TOKEN = "DICOMWEB_TOKEN"
_CREDENTIALS = f"Set {USER} and {PASSWORD}, or {TOKEN}, or add the host to ~/.netrc."
_ADDRESS = re.compile(
    r"dicomweb(\+(?P<protocol>https?))?://(?P<host>(?P<name>[^][:/#]+|\[[^][/#]+\])(:\d+)?)"
    r"(?P<service>(/(?!studies(/|$))[^/#]*)*?)"
    r"(/studies/(?P<study>[\d.]+)(/series/(?P<series>[\d.]+))?)?/*"
)
_UID = re.compile(r"\d[\w.-]{0,63}")  # some devices deviate from the standard; no path separators
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_LOCAL = re.compile(r"(?i)localhost|127(\.\d+){3}|\[::1\]")
_MODALITY = "00080060"
_PATIENT = "00100020"
_STUDY = "0020000D"
_SERIES = "0020000E"
_INSTANCE = "00080018"
# the elements of an answer that are read
_TAGS = (
    "00080016", _INSTANCE, _MODALITY, "0008103E", _PATIENT, _STUDY, _SERIES, "00200011", "00280008",
)  # fmt: skip
_ORIGIN = ("SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
_TIMEOUT_SECONDS = (10.0, 120.0)  # to connect, and to wait for the next bytes
_TOTAL_SECONDS = 1800.0  # for a search, for the images of a scan, or to store results
_MAX_JSON_BYTES = 2**26
_MAX_SLICE_BYTES = 2**28
_MAX_FILE_BYTES = 2**31  # a file may contain all slices of a scan
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
        ConfigError: If the address contains a user or password, is incomplete, or names more than
            the service for `send`, if the package dicomweb-client is not installed, or if a filter
            is not the keyword or tag of a DICOM attribute. Some servers ignore such a filter and
            return all series.
    """

    def __init__(self, setting: str, address: str) -> None:
        self.address = address
        without_query, _, query = address.partition("?")
        # the beginning of messages, without user and password
        prefix = f"{setting}={re.sub('//.*@', '//', without_query)}"
        if "@" in without_query:
            raise ConfigError(
                f"{prefix}: an address cannot contain a user or a password, because logs show it. "
                f"Remove them. {_CREDENTIALS}"
            )
        match = _ADDRESS.fullmatch(without_query)
        if match is None or "#" in query:
            raise ConfigError(
                f"{prefix}: this is not the address of a DICOMweb service. Write "
                "dicomweb://host/path, and after it nothing, /studies/UID, or "
                "/studies/UID/series/UID; filters follow as ?Modality=MR&StudyDate=20260107"
            )
        if setting == "send" and (match["study"] or query):
            raise ConfigError(
                f"{prefix}: name only the service, without studies and filters. Each result "
                "belongs to the study of its scan."
            )
        self.study_uid: str | None = match["study"]
        self.filters = dict(parse_qsl(query, keep_blank_values=True))
        if match["series"]:
            self.filters["SeriesInstanceUID"] = match["series"]
        self.url = f"{match['protocol'] or 'https'}://{match['host']}{match['service']}"
        # patient IDs by Series Instance UID, as far as the server states them
        self._patient_of_series: dict[str, str] = {}
        self._client = _make_client(prefix, self.url, self._check_answer)
        _check_attributes(prefix, self.filters)
        # `name` is the host without the port
        if self.url.startswith("http:") and not _LOCAL.fullmatch(match["name"]):
            logger.warning(
                "%s: the connection is not encrypted, so others on the network can read images "
                "and passwords. Use dicomweb:// if the server supports HTTPS.",
                prefix,
            )

    def search_series(self) -> dict[str, Mapping[str, Any]]:
        """Search the series at the address, limited by `study_uid` and `filters`.

        Returns:
            The DICOM JSON object of each series, by Series Instance UID. Its keys are tags.

        Raises:
            ResourceError: If the server cannot be searched.
        """
        search = partial(
            self._client.search_for_series, self.study_uid, search_filters=self.filters
        )
        with self._requests("the search failed"):
            return self._search(search, _SERIES)

    def search_instances(self, series: Mapping[str, Any]) -> "list[Dataset]":
        """Search the images of a series, and return their headers sorted by SOP Instance UID.

        Each header also has the elements of the series. `series` is a result of `search_series`.

        Raises:
            ResourceError: If the server cannot be searched, or states a damaged value.
        """
        study_uid = self.study_uid or _value_of(series, _STUDY)
        series_uid = _value_of(series, _SERIES)
        requested = {  # an answer may leave out what the request states
            _STUDY: {"vr": "UI", "Value": [study_uid]},
            _SERIES: {"vr": "UI", "Value": [series_uid]},
        }
        search = partial(self._client.search_for_instances, study_uid, series_uid)
        with self._requests(f"series {series_uid} cannot be searched"):
            result_of_uid = self._search(search, _INSTANCE)
            headers = [
                _to_header({**series, **result_of_uid[uid], **requested})
                for uid in sorted(result_of_uid)
            ]
        for uid in (study_uid, series_uid, *result_of_uid):
            if not _UID.fullmatch(uid):  # UIDs become names of files
                raise ResourceError(f"{self.address}: {uid!r} is not a UID.")
        self._patient_of_series[series_uid] = _value_of(series, _PATIENT)
        return headers

    def _search(self, search: Callable[..., Any], tag: str) -> dict[str, Mapping[str, Any]]:
        """Run a search page by page until no further object appears.

        A server that ignores `offset` repeats its first page. The search therefore ends with the
        first page that has no new object.

        Args:
            search: A search of the client with the argument `offset`, the number of objects to
                skip. It returns one page.
            tag: The tag of the UID by which objects are distinguished.

        Returns:
            The DICOM JSON object of each result, by UID. Of objects with equal UIDs, it is the last
            one.
        """
        result_of_uid: dict[str, Mapping[str, Any]] = {}
        n_listed = 0
        n_before = -1  # below 0, so that the first page is requested
        while n_before < len(result_of_uid):
            n_before = len(result_of_uid)
            page = search(offset=n_listed)
            result_of_uid |= {_value_of(item, tag): item for item in page}
            n_listed += len(page)
        return result_of_uid

    def find_scans(self, folder: Path, unwanted: Callable[[Scan], str]) -> FoundScans:
        """Find the scans at the address. No image is fetched.

        The case id is the UID of the series, for a radiograph with the UID of the image appended.
        A series with a damaged value, or whose images cannot be listed, is a scan with an error.
        Series of other objects, such as reports and segmentations, are skipped.

        Args:
            folder: The folder into which the scans will be fetched.
            unwanted: Returns the reason why a scan is not meant to be predicted, or "".

        Returns:
            The scans, sorted by key.

        Raises:
            ResourceError: If the server cannot be searched.
            DatasetError: If there is no series of images at the address.
        """
        scans: list[Scan] = []
        for uid, series in self.search_series().items():
            if _value_of(series, _MODALITY) in NO_IMAGE:
                continue
            try:
                scans += [one.unless(unwanted) for one in _scans_of_series(self, series, folder)]
            except ReadError as error:
                scan = Scan(CaseFiles(uid, (), group=uid), uid)
                scans.append(scan.add_finding(UNREADABLE, str(error)))
        if not scans:
            raise DatasetError(
                f"{self.address}: the server has no series of images there. Check UIDs and filters."
            )
        return FoundScans(folder, folder, tuple(sorted(scans, key=lambda scan: scan.key)))

    def fetch(self, study_uid: str, series_uid: str, files: Sequence[Path]) -> None:
        """Fetch images of a series from the server into files.

        Args:
            study_uid: The study of the series.
            series_uid: The series.
            files: One path `<SOP Instance UID>.dcm` for each image to fetch.

        An image without a patient ID is accepted.

        Raises:
            ResourceError: If the server cannot be reached, or does not send all of these images, of
                this study, series and patient.
            OutputError: If a file cannot be written.
        """
        missing = {file.stem: file for file in files}
        patient = self._patient_of_series.get(series_uid)
        maximum = _MAX_SLICE_BYTES if len(files) > 1 else _MAX_FILE_BYTES
        with self._requests(f"series {series_uid} cannot be fetched", maximum):
            images: Iterable[Dataset]
            if len(files) == 1:  # do not fetch other images of the series
                images = [
                    self._client.retrieve_instance(
                        study_uid, series_uid, files[0].stem, media_types=_ANY_SYNTAX
                    )
                ]
            else:
                images = self._client.iter_series(study_uid, series_uid, media_types=_ANY_SYNTAX)
            for image in images:
                self._n_bytes = 0  # counts the bytes of the next image
                uid, image_patient, *origin = (text(image, name) for name in _ORIGIN)
                if uid not in missing or origin != [study_uid, series_uid]:
                    continue
                # if the search gave no patient, the first image decides
                patient = patient or image_patient
                if image_patient in ("", patient):
                    with atomic_path(missing.pop(uid)) as temporary:
                        image.save_as(temporary)
        if missing:
            raise ResourceError(
                f"{self.address}: the server did not send {len(missing)} of "
                f"{count(len(files), 'image')} of series {series_uid}, or not those of its study "
                "and patient. Run the command again."
            )

    def store(self, files: Sequence[Path]) -> list[str]:
        """Store DICOM files on the server in one request, and return their SOP Instance UIDs.

        A file is stored if the answer lists it, or if a search finds it afterwards.

        Raises:
            ResourceError: If the server cannot be reached, refuses the request, redirects it to
                another host, or cannot be searched.
            OutputError: If the server does not store one of them.
            ReadError: If a file is missing or damaged.
        """
        datasets = [read_header(file, pixels=True) for file in files]
        uids = [str(dataset.SOPInstanceUID) for dataset in datasets]
        # a body of one block, because smaller ones cannot be sent again after a redirect
        self._client.set_chunk_size(sys.maxsize)
        missing = {*uids}
        with self._requests("the results cannot be stored, or not be found afterwards"):
            with suppress(ValueError, AttributeError):  # the answer is not that of the standard
                answer = self._client.store_instances(datasets)
                for item in answer.get("ReferencedSOPSequence", ()):
                    missing.discard(text(item, "ReferencedSOPInstanceUID"))
            if missing:
                study_uid = datasets[0].StudyInstanceUID  # results of a scan have the same study
                search = partial(self._client.search_for_instances, study_uid)
                missing.difference_update(self._search(search, _INSTANCE))
        if missing:
            raise OutputError(
                f"{self.address}: the server did not store all results. Its log may have the "
                "reason."
            )
        return uids

    @contextmanager
    def _requests(self, failure: str, max_bytes: int = _MAX_JSON_BYTES) -> Iterator[None]:
        """Set the limits of the requests in the context, and convert errors into `ResourceError`.

        A `ResourceError` means that the next run tries again. After an error, the next request is
        not repeated if it fails. After a context without error, failed requests are repeated again.

        Args:
            failure: The request that failed, for the message.
            max_bytes: The largest size of an answer, or of an image in it.
        """
        self._max_bytes = max_bytes
        self._deadline = monotonic() + _TOTAL_SECONDS
        try:
            yield
        except (LesionsegError, MemoryError):
            raise
        except Exception as error:  # requests, urllib3, pydicom and others
            self._client.set_http_retry_params(retry=False)  # the next request fails at once
            raise ResourceError(f"{self.address}: {failure}: {_explain(error)}") from error
        self._client.set_http_retry_params(max_attempts=_ATTEMPTS)

    def _check_answer(self, answer: "Response", **_: object) -> None:
        """Limit the size and the time of an answer's body, and check a redirection.

        The method is the response hook of the package `requests`, called before the body is read
        and before a redirection is followed. Status 409 of a stored result is turned into 202,
        because a search then decides if the server has the result.

        Raises:
            ResourceError: If the server redirects results to another host.
        """
        from requests.sessions import SessionRedirectMixin

        url = urljoin(answer.url, answer.headers.get("Location"))
        # the rule by which requests removes credentials
        is_other_host = SessionRedirectMixin().should_strip_auth(answer.url, url)
        if answer.is_redirect and answer.request.method == "POST" and is_other_host:
            answer.close()
            raise ResourceError(
                f"{self.address}: the server redirects to another host or port, {url!r}. "
                "Results contain patient data, so they were not sent there. Check the address."
            )
        if answer.status_code == 409:  # refused, perhaps because the server has the results
            answer.status_code = 202  # no error: the search decides
        self._n_bytes = 0
        # requests reads the body by this method of urllib3
        answer.raw.stream = partial(self._read_body, answer.raw)

    def _read_body(self, raw: Any, n_bytes: int, decode_content: bool) -> Iterator[bytes]:
        """Yield the body of an answer in blocks of at most `n_bytes`, as they arrive.

        The generator replaces the method `stream` of urllib3's response `raw`. The size counts from
        the last answer or, while a series is fetched, from the last image.

        Raises:
            ResourceError: If the body is too large or takes too long.
        """
        while block := raw.read1(n_bytes, decode_content):
            self._n_bytes += len(block)
            if self._n_bytes > self._max_bytes or monotonic() > self._deadline:
                raw.close()
                raise ResourceError(
                    f"{self.address}: the server sent more than {self._max_bytes >> 20} MiB, or "
                    f"needed more than {_TOTAL_SECONDS:g} s. Its log may have the reason."
                )
            yield block


def _make_client(
    prefix: str, url: str, check_answer: "Callable[[Response], None]"
) -> "DICOMwebClient":
    """Make a DICOMweb client that signs in with the credentials of the environment.

    The credentials are the token, or user and password. Without them, requests reads the netrc
    file. The logs of the packages are switched off.

    Args:
        prefix: The beginning of messages, which names the setting.
        url: The URL of the service.
        check_answer: Called for each answer.

    Raises:
        ConfigError: If the package dicomweb-client is not installed.
    """
    try:
        from dicomweb_client import session_utils
        from dicomweb_client.web import DICOMwebClient
    except ImportError as error:
        raise ConfigError(
            f"{prefix}: the package {error.name} is not installed. Run {pip_install('pacs')}."
        ) from error
    # their messages may quote patient data
    for name in ("dicomweb_client", "pydicom", "retrying", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    session = session_utils.create_session()
    token, user, password = map(os.environ.get, (TOKEN, USER, PASSWORD))
    if token:
        session.auth = partial(_add_token, token)
    elif user and password:
        session.auth = (user, password)
    client = DICOMwebClient(
        url,
        session=session,
        callback=check_answer,
        permissive_uid=True,
        timeout=_TIMEOUT_SECONDS,
    )
    client.set_http_retry_params(max_attempts=_ATTEMPTS)
    return client


def _add_token(token: str, request: "PreparedRequest") -> "PreparedRequest":
    """Add the token to a request. The package `requests` calls it as authentication function.

    The package removes the token from the header if the server redirects to another host.
    """
    request.headers["Authorization"] = f"Bearer {token}"
    return request


def _check_attributes(prefix: str, names: Iterable[str]) -> None:
    """Raise `ConfigError` if the name of a filter is not a DICOM attribute.

    A DICOM attribute is named by its keyword, such as `Modality`, or by its tag of 8 hexadecimal
    digits. `prefix` is the beginning of the message, which names the setting.
    """
    from pydicom.datadict import keyword_dict

    for name in names:
        if name not in keyword_dict and not _TAG.fullmatch(name):
            near = suggest(name, keyword_dict)
            raise ConfigError(f"{prefix}: there is no DICOM attribute {name!r}.{near}")


def _explain(error: Exception) -> str:
    """Describe for the user why a request failed, and what to do. The text has no patient data."""
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
    # `doc` of a JSON error is the body; other errors quote the media type of the answer
    if "html" in getattr(error, "doc", str(error))[:1000].lower():
        return (
            f"the answer is an HTML page, such as a login page. Check the address. {_CREDENTIALS}"
        )
    return (
        "the answer is damaged, or not one of DICOMweb. Check the path of the address. The log of "
        "the server may have the reason."
    )


def _value_of(item: Mapping[str, Any], tag: str) -> str:
    """Return the first value of an element of a DICOM JSON object as text.

    The result is "" if the object lacks the element `tag`, or the element has no value.
    """
    element: Any = item.get(tag)
    try:
        return str(element["Value"][0]).strip()
    except (KeyError, IndexError, TypeError):
        return ""


def _to_header(item: Mapping[str, Any]) -> "Dataset":
    """Convert a DICOM JSON object to a pydicom data set with only the elements of `_TAGS`.

    Names of patients are not among these elements.
    """
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
        """The paths of the files, after the files were fetched."""
        self.fetch()
        return super().contents

    def state(self) -> str:
        """Return a digest of the images' SOP Instance UIDs, by which a run recognises the scan.

        The standard does not allow an image to change under its UID. A scan with the state of an
        earlier run is therefore not fetched again.
        """
        return digest_of("\n".join(file.name for file in self.dicom.files))[:16]

    def require_unchanged(self, state: str) -> None:
        """Do nothing, because no other program changes the fetched files."""

    @property
    def is_present(self) -> bool:
        """True if all files of the scan have been fetched."""
        return all(file.is_file() for file in self.dicom.files)

    def fetch(self) -> None:
        """Fetch the files from the server, unless all are present. See `DicomWeb.fetch`."""
        if not self.is_present:
            dicom = self.dicom
            self.service.fetch(dicom.study_uid, dicom.series_uid, dicom.files)

    def release(self) -> None:
        """Remove the fetched files after the prediction, and their folder if it is then empty."""
        files = self.dicom.files
        for file in files:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # never fetched, or files of another scan of the series remain
            files[0].parent.rmdir()


def _scans_of_series(service: DicomWeb, series: Mapping[str, Any], folder: Path) -> list[Scan]:
    """Search the images of a series on the server, and group them to scans.

    Each radiograph is a scan. All other images of the series together are one scan. `series` is a
    result of `search_series`, and `folder` the folder into which scans will be fetched.

    Raises:
        ResourceError: If the server cannot be searched.
    """
    headers_of_scans: dict[str, dict[Path, Dataset]] = defaultdict(dict)
    series_folder = folder / _value_of(series, _SERIES)
    for header in service.search_instances(series):
        uid = text(header, "SOPInstanceUID")
        headers_of_scans[uid if is_radiograph(header) else ""][series_folder / f"{uid}.dcm"] = (
            header
        )
    scans: list[Scan] = []
    for uid, headers in headers_of_scans.items():
        dicom = describe_headers(headers)
        dicom = replace(
            dicom,
            name=uid,
            place=series_folder if dicom.is_series else dicom.place,
            # the answer does not state the positions of frames
            unfit="" if dicom.n_slices > len(headers) else dicom.unfit,
        )
        scans.append(RemoteScan(**vars(dicom_scan(dicom, folder)), service=service))
    return scans
