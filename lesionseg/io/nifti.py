"""NIfTI files (.nii, .nii.gz): read, write, units, contradicting sform, qform and voxel size.

The axes are (x, y, z) in the file and (z, y, x) in memory.
"""

import gzip
import io
import logging
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume, describe_sides
from lesionseg.core.arrays import Numbers
from lesionseg.errors import ReadError
from lesionseg.io.limits import (
    ONE_VALUE,
    check_grid,
    check_size,
    convert_read_errors,
    limits,
)
from lesionseg.io.warn_once import warn_once

logger = logging.getLogger(__name__)

SUFFIXES = (".nii.gz", ".nii")
_UNITS = {1: "metres", 3: "micrometres"}  # by the code in the header
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # by the code; every other code means millimetres
_MAX_OFFSET = 2**26  # largest number of bytes before the voxels, and also after them
_LARGE_BYTES = 2**24  # of voxels, from which gzip is inflated by a faster library
_SAME_PLACE_MM = 1.0
_SAME_SIZE = 0.01  # relative difference of two voxel sizes, which changes volumes by 3 %
# largest excess of a quaternion's squared length over 1 that counts as rounding
_QUATERNION_THRESHOLD = 1e-4
_KINDS = {348: "Nifti1Image", 540: "Nifti2Image"}  # by the size of the header
# fields of a header that state where its voxels are, except for the quaternion
_POSITION = ("xyzt_units", "sform_code", "srow_x", "srow_y", "srow_z", "qform_code")
# columns of an affine for indices (x, y, z) in the order (z, y, x) or the reverse; the last column
# is the position; the second list is the same for planes
_REVERSED = [2, 1, 0, 3]
_REVERSED_PLANE = [1, 0, 3]
_PLANE = [0, 1, 3]  # rows and columns of an affine without the third axis


def read_nifti(path: Path, pixel_mm: float | None, as_labels: bool) -> Volume:
    """Read a NIfTI file as a volume `[1, *spatial]` in the dtype of the file.

    If the header states a slope and an intercept for the stored numbers, they are applied, and the
    dtype is float32. The volume has the two or three spatial axes of the file. One exception is a
    picture that users of nnU-Net store with a third axis, see `_make_geometry`. The header states
    the voxel size, so `pixel_mm` is not used. `as_labels` is not used, because masks are read like
    images.

    Raises:
        ReadError: If the file is damaged, its header contains impossible numbers, its voxels are
            not integers or floating-point numbers, or more than 64 MiB follow the voxels of a
            compressed file.
    """
    with _open_voxels(path) as stream:
        image = _parse_header(path, stream)
        geometry = _read_grid(path, image)
        data = image.dataobj  # nibabel's proxy, which reads the voxels when they are accessed
        _check_numbers(path, data.dtype)
        array = np.asarray(data.get_unscaled())
        if (data.slope, data.inter) != (1, 0):
            array = array.astype(np.float32)
            array *= np.float32(data.slope)
            array += np.float32(data.inter)
        # copy a memory map, because its values change if the file is overwritten; None copies
        # other arrays only if type or order change
        copy = True if isinstance(array, np.memmap) else None
        array = np.array(array, array.dtype.newbyteorder("="), order="F", copy=copy)
        array = array.reshape(geometry.shape[::-1])  # without axes of one voxel, such as time
        # read to the end, because gzip verifies its checksum there
        n_after = 0
        while piece := stream.read(2**20):
            n_after += len(piece)
            if n_after > _MAX_OFFSET:
                raise ReadError(
                    f"{path}: more than {_MAX_OFFSET} bytes follow the voxels. The file is "
                    "damaged: copy it again from its source."
                )
        return Volume(np.ascontiguousarray(array.T)[np.newaxis], geometry)


def volume_of_nibabel(image: Any) -> tuple[Path, Volume] | None:
    """Return the path and the volume of a nibabel image, so that callers of Python can predict it.

    Args:
        image: Any object, such as a `nibabel.Nifti1Image`.

    Returns:
        The path of the image's file (`array` if it has none) and a float32 volume
        `[1, *spatial]`, as `read_nifti` would read it. None if the object is not an image of
        nibabel.

    Raises:
        ReadError: If the grid or the type of the voxels is not supported, see `read_nifti`.
    """
    if "nibabel" not in sys.modules:  # an array must not wait for the import
        return None
    import nibabel
    from nibabel.spatialimages import SpatialImage

    if not isinstance(image, SpatialImage):
        return None
    path = Path(image.get_filename() or "array")
    image = nibabel.Nifti1Image.from_image(image)
    image.extra["pixdim"] = image.header["pixdim"][1:4]  # as `_parse_header` does for a file
    geometry = _read_grid(path, image)
    _check_numbers(path, image.dataobj.dtype)
    # (x, y, z), without axes of one voxel, such as time
    array = np.asarray(image.dataobj, np.float32).reshape(geometry.shape[::-1])
    return path, Volume(np.ascontiguousarray(array.T)[np.newaxis], geometry)


def _check_numbers(path: Path, dtype: np.dtype[Any]) -> None:
    """Raise `ReadError` if voxels are not single real numbers, but colours or complex numbers."""
    if dtype.kind not in "biuf":  # bool, int, unsigned int, float
        raise ReadError(
            f"{path}: the voxels are not plain numbers ({dtype}). Save each channel as a file of "
            "integers or floating-point numbers."
        )


def read_nifti_geometry(path: Path, pixel_mm: float | None) -> Geometry:
    """Read the grid from the header of a NIfTI file.

    The header states the voxel size, so `pixel_mm` is not used.
    """
    with _open_stream(path) as stream:
        return _read_grid(path, _parse_header(path, stream))


def has_orientation(path: Path) -> bool:
    """Return True if the header states how the voxels are oriented in the patient.

    NIfTI has two affines to patient coordinates, sform and qform. Each of them has a code, which is
    0 if the affine is not set.
    """
    with convert_read_errors(path), _open_stream(path) as stream:
        header = _parse_header(path, stream).header
        return bool(header["sform_code"] or header["qform_code"])


def write_nifti(path: Path, array: NDArray[Any], geometry: Geometry, like: Path | None) -> None:
    """Write an array as NIfTI, such as a predicted mask with the position of its scan.

    NIfTI states the position by two affines, sform and qform, each with a code (0: not set, 1:
    scanner coordinates). Without `like`, both are set to the affine of `geometry`, with code 1, and
    the unit is millimetres.

    Args:
        path: The file.
        array: The voxels `[*spatial]`.
        geometry: The grid of the array.
        like: A NIfTI file on the same grid. Its sform, qform, codes and unit are copied, so that
            every viewer overlays the two files exactly. If both of its codes are 0, its position
            follows from its voxel sizes, and is written as sform and qform of code 1. A file of
            another format or on another grid is not used.
    """
    import nibabel

    # read the header of `like`
    like_image = None
    if like is not None and like.name.lower().endswith(SUFFIXES):
        with convert_read_errors(like), _open_stream(like) as stream:
            like_image = _parse_header(like, stream)
            if not _read_grid(like, like_image).matches(geometry):
                like_image = None
    # compute the affine for indices (x, y, z)
    affine = np.eye(4)  # a plane gets the position z = 0
    if like_image is not None:
        affine = like_image.affine
    elif geometry.dims == 3:
        affine[:] = geometry.affine[:, _REVERSED]
    else:
        affine[np.ix_(_PLANE, _PLANE)] = geometry.affine[:, [1, 0, 2]]  # (y, x) to (x, y)
    # fill the header
    image = nibabel.Nifti1Image(array.T, affine)
    image.header.set_xyzt_units("mm")
    image.header["sform_code"] = 0  # nibabel writes 2
    if like_image is not None:
        for name in _POSITION:
            image.header[name] = like_image.header[name]
        # with a qform, the header has the voxel sizes of the qform
        image.header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0)[: array.ndim])
        if like_image.header["qform_code"]:
            image.set_qform(_qform(like_image), code=int(like_image.header["qform_code"]))
    if not image.header["sform_code"] and not image.header["qform_code"]:
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
    nibabel.save(image, path)


def _open_stream(path: Path) -> Any:
    """Open a NIfTI file for reading, and decompress it if its content is gzip.

    The content decides, not the suffix.
    """
    return gzip.open(path) if _is_gzip(path) else path.open("rb")


def _open_voxels(path: Path) -> Any:
    """Open a NIfTI file to read all of its voxels. A large gzip file is inflated in memory at once.

    imagecodecs (libdeflate) needs a third of the time of Python's gzip. Its result is used if it is
    exactly as long as header and voxels, and the file consists of one gzip member with the right
    checksum. Any other file is read by Python's gzip, which raises an error if the file is damaged.
    """
    if not _is_gzip(path):
        return path.open("rb")
    with _open_stream(path) as stream:
        image = _parse_header(path, stream)  # checks the claims before memory is allocated
    n_bytes = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    if n_bytes >= _LARGE_BYTES:
        import imagecodecs

        stored = path.read_bytes()
        # the last 4 bytes of gzip: the inflated length of the last member, modulo 2³²
        stated_length = int.from_bytes(stored[-4:], "little")
        with suppress(Exception):  # more bytes than expected, or a damaged file
            content = imagecodecs.gzip_decode(stored, out=n_bytes)
            if len(content) == n_bytes and stated_length == n_bytes % 2**32:
                return io.BytesIO(content)
    return gzip.open(path)


def _is_gzip(path: Path) -> bool:
    """Return True if the content of a file begins with the two bytes of gzip."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _parse_header(path: Path, stream: BinaryIO) -> Any:
    """Parse and check a NIfTI header, and return a nibabel image whose voxels are not read yet.

    nibabel replaces a voxel size of 0 by 1. Therefore `extra["pixdim"]` of the image contains the
    voxel sizes as the file states them.

    Args:
        path: The file, for messages and for its size.
        stream: The uncompressed content of the file, at its beginning.

    Raises:
        ReadError: If the file is not NIfTI, its shape has no voxels, the offset of its voxels is
            impossible, or it claims more voxels than it can contain.
    """
    import nibabel

    start = stream.read(4)  # the size of the header, in the byte order of the file
    class_name = _KINDS.get(
        int.from_bytes(start, "little"), _KINDS.get(int.from_bytes(start, "big"))
    )
    if class_name is None:
        raise ReadError(
            f"{path}: this is not a NIfTI image (first bytes {start!r}). Copy it again from its "
            "source, or give it the suffix of its format."
        )
    # messages of nibabel do not name the file, so they are switched off in this process
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    image_class = getattr(nibabel, class_name)
    block = start + stream.read(image_class.header_class.sizeof_hdr - len(start))
    header = image_class.header_class(block, check=False)
    offset = float(header["vox_offset"])
    min_offset = (
        image_class.header_class.single_vox_offset
    )  # header and four bytes about extensions
    if not min_offset <= offset <= _MAX_OFFSET or offset % 1:
        raise ReadError(
            f"{path}: the header states {offset:g} bytes before the voxels, expected at least "
            f"{min_offset}. The file is damaged or belongs to a pair .hdr/.img: copy it again "
            "from its source, or convert the pair to one file."
        )
    stream.seek(0)
    try:
        image = image_class.from_stream(stream)
    except ValueError:  # the quaternion is longer than 1, perhaps by rounding
        stream.seek(0)
        image = _allow_long_quaternions(image_class).from_stream(stream)
    image.extra["pixdim"] = header["pixdim"][1:4]  # nibabel replaces 0 by 1
    if min(image.shape, default=0) < 1:
        raise ReadError(
            f"{path}: the header states no voxels (shape {tuple(image.shape)}). The file is "
            "damaged: copy it again from its source."
        )
    n_bytes = math.prod(map(int, image.shape)) * image.get_data_dtype().itemsize
    check_size(path, n_bytes, compressed=_is_gzip(path))
    return image


def _allow_long_quaternions(kind: Any) -> Any:
    """Return a subclass of a nibabel image class that accepts a slightly too long quaternion.

    The qform of NIfTI is a unit quaternion. The header states three of its four components. If the
    sum of their squares is above 1 by rounding, nibabel raises an error. The subclass has a larger
    tolerance, `_QUATERNION_THRESHOLD`.
    """
    # both are attributes of nibabel's classes: the tolerance, and the class that parses the header
    members = {"quaternion_threshold": _QUATERNION_THRESHOLD}
    return type(
        kind.__name__, (kind,), {"header_class": type("Header", (kind.header_class,), members)}
    )


def _read_grid(path: Path, image: Any) -> Geometry:
    """Return the grid of a NIfTI image in RAS millimetres, after a check of the header.

    Axes of length 1 after the third axis, such as time, are dropped. Warn if sform, qform and voxel
    sizes contradict each other. Raise `ReadError` if the image has not two or three axes, the voxel
    size or position is unknown, or a size is outside the limits.
    """
    shape = tuple(map(int, image.shape))
    while len(shape) > 3 and shape[-1] == 1:  # drop a time axis of one volume
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise ReadError(f"{path}: the shape is {shape}, expected two or three axes. {ONE_VALUE}")
    affine = _mm_scale(image) @ np.asarray(image.affine, float)
    _check_affine(path, image, affine, len(shape))
    geometry = _make_geometry(path, shape, affine)
    check_grid(path, geometry, _UNITS.get(_unit_code(image), ""))
    if geometry.dims == 3 and image.header["sform_code"]:
        _warn_of_contradictions(path, image, geometry)
    return geometry


def _make_geometry(path: Path, shape: tuple[int, ...], affine: Numbers) -> Geometry:
    """Return the grid with array axes (z, y, x) or (y, x) for a file with axes (x, y, z) or (x, y).

    Users of nnU-Net store a picture as NIfTI with a third axis of one voxel and a spacing of
    999 mm, which is more than the spacing of any scan. The grid of such a file gets two axes, with
    a warning. The grid of such a picture, and of a plane that is oblique in the patient, has only
    the spacing of the file, not its position.

    Args:
        path: The file, for the warning.
        shape: The shape in the order of the file.
        affine: The affine of indices (x, y, z) in mm `[4, 4]`.
    """
    dims = len(shape)
    spacing = np.linalg.norm(affine[:3, :dims], axis=0)
    max_mm = limits().spacing_mm[1]
    # axes of one voxel with an impossible spacing
    flat = [axis for axis in range(dims) if shape[axis] == 1 and spacing[axis] > max_mm]
    if dims == 3 and len(flat) == 1 and max(shape) > 1:
        text = "%s: one slice of %.4g mm is read as a picture with two axes."
        warn_once(logger, text, path, spacing[flat[0]])
        picture_axes = [axis for axis in (2, 1, 0) if axis not in flat]
        return Geometry.from_spacing(
            [shape[axis] for axis in picture_axes], spacing[picture_axes].tolist()
        )
    if dims == 3:
        return Geometry(shape[::-1], affine[:, _REVERSED])
    # the z coordinate is constant in the plane, apart from the rounding of float32
    is_in_xy_plane = np.allclose(affine[2, :2], 0, atol=1e-6 * spacing.min())
    if is_in_xy_plane:
        return Geometry(shape[::-1], affine[np.ix_(_PLANE, _REVERSED_PLANE)])
    # an oblique plane cannot be located with two coordinates, so only its spacing is kept
    return Geometry.from_spacing(shape[::-1], spacing[::-1].tolist())


def _check_affine(path: Path, image: Any, affine: Numbers, dims: int) -> None:
    """Raise `ReadError` if the header does not state the size or position of the voxels.

    The size is unknown if a voxel size (pixdim) is 0 and the sform is not set. The position is
    unknown if `affine`, in mm, contains NaN or infinity.
    """
    sizes = image.extra["pixdim"][:dims]
    if not image.header["sform_code"] and not sizes.all():
        raise ReadError(
            f"{path}: the voxel size is unknown (pixdim is {describe_sides(sizes)} mm). Convert "
            "the scan again from its DICOM files, or write the true size into the header, for "
            "example with fslchpixdim."
        )
    if not np.isfinite(affine).all():
        raise ReadError(
            f"{path}: the sform or qform of the header contains NaN or infinity. Convert the scan "
            "again from its source. If only the sform is wrong, set sform_code to 0, so that the "
            "qform is used."
        )


def _warn_of_contradictions(path: Path, image: Any, geometry: Geometry) -> None:
    """Warn if the voxel sizes (pixdim) or the qform differ from the sform.

    lesionseg uses the sform, but another program may use the qform. Voxel sizes may differ by 1 %,
    and positions of the corners by 1 mm.
    """
    sform_mm = geometry.spacing_mm[::-1]
    # some programs write negative sizes
    pixdim_mm = np.abs(image.extra["pixdim"]) * _mm_scale(image)[0, 0]
    if not pixdim_mm.all():  # unknown sizes, without which there is no qform
        return
    if not np.allclose(sform_mm, pixdim_mm, rtol=_SAME_SIZE, atol=0):
        text = "%s: the sform states voxels of %s mm, but pixdim states %s mm; the sform is used."
        warn_once(logger, text, path, describe_sides(sform_mm), describe_sides(pixdim_mm))
    if not image.header["qform_code"]:
        return
    qform = Geometry(geometry.shape, (_mm_scale(image) @ _qform(image))[:, _REVERSED])
    distance = geometry.distance_mm(qform)
    if distance > _SAME_PLACE_MM:
        text = (
            "%s: sform and qform differ by %.1f mm; the sform is used. Check in a viewer that left "
            "and right are correct."
        )
        warn_once(logger, text, path, distance)


def _qform(image: Any) -> Numbers:
    """Return the affine of the qform (quaternion), for indices (x, y, z), in the header's unit.

    The code of the qform is not considered. If the qform is not valid, return the image's affine.
    """
    try:
        qform = np.asarray(image.get_qform())
        return qform if np.isfinite(qform).all() else np.asarray(image.affine)
    except ValueError:
        result: Numbers = image.affine
        return result


def _unit_code(image: Any) -> int:
    """Return the code of the unit of length: 1 metres, 2 millimetres, 3 micrometres, 0 unknown."""
    return int(image.header["xyzt_units"]) & 7  # the higher bits are the unit of time


def _mm_scale(image: Any) -> Numbers:
    """Return the `[4, 4]` matrix that converts coordinates in the header's unit to millimetres.

    An unknown unit counts as millimetres.
    """
    factor = _MM_PER_UNIT.get(_unit_code(image), 1.0)
    return np.diag([factor, factor, factor, 1.0])
