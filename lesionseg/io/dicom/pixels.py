"""Stored DICOM pixels, decompressed by whichever decoder is installed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from lesionseg.errors import ReadError
from lesionseg.io.formats.guard import check_claim, reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

# what decodes a transfer syntax that needs more than pydicom and Pillow, PS3.6 table A-1
_PACKAGES = {
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.57": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.70": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pillow",
    "1.2.840.10008.1.2.4.91": "pillow",
    "1.2.840.10008.1.2.4.201": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg pylibjpeg-openjpeg",
}


def stored_pixels(path: Path, header: "Header") -> NDArray[Any]:
    """The pixels of a header that was read with them, as stored: `[y, x]` or `[frame, y, x]`.

    Raises `ReadError`, naming the compression and the package to install, where no decoder is
    there for it, and for pixels that are damaged.
    """
    _refuse_undecodable(path, header)
    check_pixels(path, header)
    with reading(path):
        return header.pixel_array


def check_pixels(path: Path, header: "Header") -> None:
    """Raise `ReadError` when rows, columns and frames claim more than the file can hold."""
    with reading(path):
        frames = header.get("PerFrameFunctionalGroupsSequence", None) or ()
        n_frames = max(int(header.get("NumberOfFrames", None) or 1), len(frames))
        n_bits = int(header.get("BitsAllocated", 8)) * int(header.get("SamplesPerPixel", 1))
        n_bytes = int(header.Rows) * int(header.Columns) * n_frames * n_bits // 8
        syntax = _syntax(header)
        packed = syntax is not None and (syntax.is_compressed or syntax.is_deflated)
        check_claim(path, n_bytes, compressed=packed)


def _syntax(header: "Header") -> Any:
    return header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None


def _refuse_undecodable(path: Path, header: "Header") -> None:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = _syntax(header)
    if syntax is None or not syntax.is_compressed:
        return
    try:
        if get_decoder(syntax).is_available:
            return
    except NotImplementedError:  # video, or one that pydicom does not know
        pass
    package = _PACKAGES.get(str(syntax))
    raise ReadError(
        f"The DICOM pixels are compressed as {syntax.name}, which nothing installed can decode.",
        where=path,
        seen=f"transfer syntax {syntax}",
        remedy=f"pip install {package}" if package else "Export the images again, uncompressed.",
    )
