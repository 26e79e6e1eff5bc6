"""Model at `hf://` or `https://`: download, cache, SHA-256, redirects, size limit, web errors.

`hf://user/model[@revision][/path]` is downloaded by the package of the hub into its own cache.
`https://…/model.zip` is downloaded into `models` of `download_folder`, into a folder named by the
SHA-256 of the file. `…/model.zip/path` is a folder in a zip, and `…#sha256=DIGEST` pins the content
of a file. Nothing is unpickled or imported.
"""

import glob
import logging
import os
import re
import shutil
import ssl
import zipfile
from errno import ENOSPC
from http.client import HTTPException
from os import PathLike, fspath
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from lesionseg.config import is_url
from lesionseg.errors import BundleError, ConfigError, ReadError, pip_install
from lesionseg.io.bundle_folder import MODELS, BundleFiles, resolve_bundle
from lesionseg.io.files import digest_of, download_folder, output_errors
from lesionseg.io.layouts.nnunet import DATASET_JSON
from lesionseg.io.nnunet_model import CHECKPOINT, PLANS, NnunetModelFiles, find_nnunet_model
from lesionseg.version import __version__

log = logging.getLogger(__name__)

_ADDRESS = re.compile(
    r"(?P<url>[^#]+?)((?<=\.zip)/(?P<inner>[^#]*))?(#sha256=(?P<sha256>[0-9a-fA-F]{64}))?"
)
_CHECKPOINTS = (".pth", ".pt")
# the only files that are downloaded if the address is a repository or a folder in it
_SMALL_FILES = (
    "*plan.json",
    "*selection.json",
    "*README.md",
    "*model_card.md",  # of earlier versions
    f"*{PLANS}",
    f"*{DATASET_JSON}",
)
_WEIGHTS = ("*weights*.safetensors", f"*{CHECKPOINT}")
_MAX_BYTES = 2**36  # largest size of a file of a web server
_TIMEOUT_SECONDS = 60
# of the URL, the connection and the answer
_WEB_ERRORS = (URLError, ConnectionError, TimeoutError, ssl.SSLError, HTTPException, ValueError)


def local_model(place: str | PathLike[str]) -> Path:
    """Return the local path of a model, and download a model at an address into the cache first.

    If the address names a commit of the hub or a pinned digest, the model needs no network once it
    is in the cache. A pinned digest is checked at each call.

    Args:
        place: A path, which is returned unchanged, or an address in one of the forms of this
            module's docstring.

    Returns:
        The path of a bundle's folder, an nnU-Net model or a checkpoint. A checkpoint may not exist
        in the downloaded model.

    Raises:
        ConfigError: If the address has a wrong form or is not safe, or huggingface_hub is missing.
        ReadError: If the model cannot be downloaded, or does not exist.
        BundleError: If the content differs from the pinned digest, or is not a model.
        OutputError: If the cache cannot be written.
    """
    text = fspath(place)
    if not is_url(text):
        return Path(text)
    address = _ADDRESS.fullmatch(text)
    if address is None:
        raise ConfigError(f"{text}: write sha256= and 64 hexadecimal digits after #, or nothing.")
    url = address["url"]
    sha256 = address["sha256"] and address["sha256"].lower()
    local = _fetch_from_hub(url) if url.startswith("hf://") else _fetch_from_web(url, sha256)
    if sha256 is not None and not (local.is_file() and digest_of(local) == sha256):
        raise BundleError(
            f"{text}: {local} is not a file of this SHA-256. Check the digest. If it is right, the "
            "file is damaged: delete it. Pin a folder by its commit, hf://user/model@COMMIT."
        )
    path = local / (address["inner"] or "")  # of a zip: the folder in it that the address names
    try:
        if path.suffix in _CHECKPOINTS or find_nnunet_model(path) is not None:
            return path
        pretrained = path / "checkpoint_final.pth"  # a repository of nnssl has no other weights
        return pretrained if pretrained.is_file() else resolve_bundle(path)
    except BundleError as error:
        raise BundleError(f"{text}: {error}") from error


def find_model(place: str | PathLike[str]) -> BundleFiles | NnunetModelFiles:
    """Find the files of a trained model, either a bundle of lesionseg or an nnU-Net model.

    Args:
        place: The model: a bundle, a run directory that contains a bundle, or an nnU-Net model. It
            is a folder, a zip, a folder in a zip, or an address to download from (`local_model`).

    Raises:
        BundleError: If there is no such model, or the training has not finished.
        LesionsegError: If the model cannot be downloaded, see `local_model`.
    """
    path = local_model(place)
    return find_nnunet_model(path) or BundleFiles(resolve_bundle(path))


def read_card(place: str | PathLike[str]) -> str:
    """Return the text of the model card of a bundle. For `place`, see `find_model`.

    The text is "" for an nnU-Net model, and for a bundle without a card.
    """
    files = find_model(place)
    return files.card_text() if isinstance(files, BundleFiles) else ""


def _fetch_from_hub(url: str) -> Path:
    """Download a model from the Hugging Face Hub into its cache, and return the model's path.

    `url` has the form `hf://user/model[@revision][/path]`. If the path is a zip or a checkpoint,
    only this file is downloaded, otherwise the files with the usual names of weights, plan and
    card. If the URL does not name a commit, log the URL that pins the downloaded commit.

    Raises:
        ConfigError: If the URL has a wrong form, or huggingface_hub is missing.
        ReadError: If the model cannot be downloaded.
        OutputError: If the cache cannot be written.
    """
    try:
        from huggingface_hub import constants, parse_hf_uri, snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"{url}: huggingface_hub is missing or too old. Run {pip_install('hub')}."
        ) from error
    try:
        address = parse_hf_uri(url)
    except ValueError as error:
        raise ConfigError(
            f"{url}: this is not hf://user/model[@revision]. {error}".rstrip()
        ) from error
    # `allow_patterns` are globs, so special characters of the path are escaped
    inner = glob.escape(address.path_in_repo)
    wanted_files = [*_SMALL_FILES, *(f"{inner}{name}" for name in _WEIGHTS)]
    if PurePosixPath(inner).suffix in (".zip", *_CHECKPOINTS):
        wanted_files = [inner]
    with output_errors(Path(constants.HF_HUB_CACHE)):
        try:
            folder = snapshot_download(
                address.id,
                repo_type=address.type,
                revision=address.revision,
                allow_patterns=wanted_files,
            )
        except Exception as error:  # errors of the package, of its HTTP library and of the system
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the disk
            reason = " ".join(str(error).split())
            raise ReadError(
                f"{url}: the model cannot be downloaded ({reason}). Check the address, the "
                "connection, and your permissions (hf auth login)."
            ) from error
    commit = Path(folder).name  # the hub's cache names its folders by the commit
    if commit != address.revision:
        # hf://user/model, but hf://datasets/user/name
        kind = "" if address.type == "model" else f"{address.type}s/"
        path = f"/{address.path_in_repo}" if address.path_in_repo else ""
        pinned = f"hf://{kind}{address.id}@{commit}{path}"
        log.info("%s has the commit %s; %s pins it.", url, commit, pinned)
    return Path(folder, address.path_in_repo)


class _SafeRedirects(HTTPRedirectHandler):
    """A handler of HTTP redirects that follows only URLs that begin with one of `schemes`.

    A server can otherwise redirect a download from HTTPS to a local file or to unsafe HTTP.
    """

    def __init__(self, schemes: tuple[str, ...]) -> None:
        self._schemes = schemes

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        """Return the request of the URL to which a server redirects. urllib calls this method.

        Raise `HTTPError` if the new URL does not begin with one of `schemes`.
        """
        if not newurl.startswith(self._schemes):
            raise HTTPError(newurl, code, f"it redirects to the unsafe {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch_from_web(url: str, sha256: str | None) -> Path:
    """Download a model file of a web server into the cache, and return its path in the cache.

    With a pinned digest, a file in the cache is not downloaded again. The caller then checks its
    digest. Without a pinned digest, the file is downloaded at each call, because it may have
    changed on the server, and the address that pins it is logged.

    Args:
        url: The URL of a zip or a checkpoint.
        sha256: The pinned SHA-256 of the file in lower case, or None.

    Raises:
        ConfigError: If the scheme of the URL is not HTTPS, and not HTTP with a pinned digest.
        ReadError: If the file cannot be downloaded.
        BundleError: If the downloaded file does not have the pinned digest.
        OutputError: If the cache cannot be written.
    """
    # a file that is replaced during its transfer is noticed by HTTPS, and by a pinned digest
    schemes = ("https://",) if sha256 is None else ("https://", "http://")
    if not url.startswith(schemes):
        raise ConfigError(
            f"{url}: a model is read from a local path, from hf://user/model or from "
            "https://…/model.zip, but from http:// only if #sha256= pins its content."
        )
    models = download_folder() / MODELS
    suffix = PurePosixPath(url.partition("?")[0]).suffix
    name = f"model{suffix if suffix in _CHECKPOINTS else '.zip'}"
    if sha256 is not None and (models / sha256 / name).is_file():
        return models / sha256 / name
    with output_errors(models):
        models.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=models) as temporary:
            download = Path(temporary, name)
            try:
                _download(url, download, _SafeRedirects(schemes))
            except _WEB_ERRORS as error:  # the remaining errors are those of the disk
                if isinstance(error, HTTPError):
                    error.close()  # it keeps a connection open
                reason = " ".join(str(error).split())
                raise ReadError(
                    f"{url}: the file cannot be downloaded ({reason}). Check the address and the "
                    "connection, and run the command again."
                ) from error
            digest = digest_of(download)
            if sha256 not in (None, digest):
                raise BundleError(
                    f"{url}: the server's file has the SHA-256 {digest}, not the pinned one. Check "
                    "the address and the pinned digest."
                )
            path = models / digest / name
            path.parent.mkdir(exist_ok=True)
            download.replace(path)
    if sha256 is None:
        log.info("%s#sha256=%s pins this model, so that it stays in the cache.", url, digest)
    return path


def _download(url: str, path: Path, redirects: HTTPRedirectHandler) -> None:
    """Download the file at a URL to `path`, after a check of its size.

    Args:
        url: The URL.
        path: The new file. Its suffix is that of the expected content.
        redirects: The handler that decides which redirects are followed.

    Raises:
        ValueError: If the server does not state the size, the file is too large or cut short, or it
            is not a zip although `path` ends in `.zip`.
        OSError: If the server refuses the file, the disk has too little space, or the file cannot
            be written.
        HTTPException: If the URL or the answer has a wrong form.
    """
    request = Request(url, headers={"User-Agent": f"lesionseg/{__version__}"})
    with (
        build_opener(redirects).open(request, timeout=_TIMEOUT_SECONDS) as answer,
        path.open("wb") as file,
    ):
        n_bytes = answer.length  # None if the body is sent in chunks
        if n_bytes is None:
            raise ValueError("its size is not stated: download it yourself, and name that file")
        if n_bytes >= _MAX_BYTES:
            raise ValueError("it is too large")
        if n_bytes >= shutil.disk_usage(path.parent).free:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        shutil.copyfileobj(answer, file)
        if file.tell() != n_bytes:
            raise ValueError(f"it ended after {file.tell()} of {n_bytes} bytes")
    if path.suffix == ".zip" and not zipfile.is_zipfile(path):
        raise ValueError("this is not a zip")
