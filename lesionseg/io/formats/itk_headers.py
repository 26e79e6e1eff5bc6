"""What the headers of MetaImage and NRRD files say of their voxels, read before ITK sees the file.

NRRD: lines `field: value`, `key:=value` and `# comment` up to an empty line; behind it lie the
voxels, unless `data file` names another file. MetaImage: lines `name = value`.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from lesionseg.errors import ReadError
from lesionseg.io.formats.header_fields import Fields, ItkHeader, Packing, header_lines, no_field

# names in ASCII; ITK would take a colon for an equals sign too
_LINE = re.compile(r"[ \t]*([!-9;<>-~](?:[ -9;<>-~]{0,98}[!-9;<>-~])?)[ \t]*=(.*)")
# how many numbers a field holds: powers of the number of axes
_NUMBERS = {
    **dict.fromkeys(("NDims", "ElementNumberOfChannels", "CompressedDataSize", "ID"), 0),
    **dict.fromkeys(("ParentID", "HeaderSize", "FileFormatVersion", "ElementNBits"), 0),
    **dict.fromkeys(("ElementMin", "ElementMax"), 0),
    **dict.fromkeys(("ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset"), 0),
    **dict.fromkeys(("DimSize", "ElementSpacing", "ElementSize", "ElementOrigin", "Offset"), 1),
    **dict.fromkeys(("Position", "Origin", "CenterOfRotation", "ImagePosition", "SequenceID"), 1),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation", "ElementDirection"), 2),
}
_COLOUR_NUMBERS = 4
# the letters that ITK has room for, in fields that it copies and in all others
_ROOM = {
    **dict.fromkeys(("ObjectType", "ObjectSubType", "Comment", "Name", "AcquisitionDate"), 250),
    **dict.fromkeys(("AnatomicalOrientation",), 10),
}
_ROOM_ELSEWHERE = 490
_METAIMAGE_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_BOOLEANS = {
    **dict.fromkeys(("True", "true", "TRUE", "1"), True),
    **dict.fromkeys(("False", "false", "FALSE", "0"), False),
}
_MAGIC = ("NRRD00.01", "NRRD0001", "NRRD0002", "NRRD0003", "NRRD0004", "NRRD0005")
# without spaces: the format knows each name with and without them
# fmt: off
_NRRD_FIELDS = {
    "content", "number", "type", "blocksize", "dimension", "space", "spacedimension", "sizes",
    "spacings", "thicknesses", "axismins", "axismaxs", "spacedirections", "centers",
    "centerings", "kinds", "labels", "units", "min", "max", "oldmin", "oldmax", "endian",
    "encoding", "lineskip", "byteskip", "sampleunits", "spaceunits", "spaceorigin",
    "measurementframe", "datafile",
}
# fmt: on
_LOWER = ("type", "encoding")  # these values are alike in upper and lower case
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), 1),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int"), 2),
    **dict.fromkeys(("int16", "int16_t", "ushort", "unsigned short", "unsigned short int"), 2),
    **dict.fromkeys(("uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int"), 4),
    **dict.fromkeys(("uint32", "uint32_t", "float"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long"), 8),
    **dict.fromkeys(("signed long long int", "int64", "int64_t", "ulonglong"), 8),
    **dict.fromkeys(("unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
    "double": 8,
}
_PACKING: Mapping[str, Packing] = {
    "raw": "raw",
    "txt": "text",
    "text": "text",
    "ascii": "text",
    "hex": "hex",
    "gz": "compressed",
    "gzip": "compressed",
}


def read_metaimage_header(path: Path) -> ItkHeader:
    """What the header says of its voxels. Raises `ReadError`."""
    fields = _metaimage_fields(path)
    n_axes = fields.axes("NDims")
    for name, power in _NUMBERS.items():
        fields.check_numbers(name, n_axes**power)
    fields.check_numbers("Color", _COLOUR_NUMBERS)
    if fields.values.get("HeaderSize") != "-1":  # the voxels are the file's end
        fields.integer("HeaderSize", 0)
    compressed = fields.one_of("CompressedData", _BOOLEANS, False)
    as_text = not fields.one_of("BinaryData", _BOOLEANS, True)
    local = fields.text("ElementDataFile") in ("LOCAL", "Local", "local")
    return ItkHeader(
        math.prod(fields.sizes("DimSize", n_axes)) * fields.integer("ElementNumberOfChannels", 1),
        fields.one_of("ElementType", _METAIMAGE_BYTES),
        "text" if as_text else "compressed" if compressed else "raw",
        path if local else fields.file_beside("ElementDataFile"),
        fields.integer("CompressedDataSize", 0),
    )


def _metaimage_fields(path: Path) -> Fields:
    fields = Fields(path)
    for line in header_lines(path):
        if not line.strip(" \t"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise no_field(path, "<name> = <value>")
        name = match[1]
        fields.add(name, match[2])
        room = _ROOM.get(name, _ROOM_ELSEWHERE)
        if len(match[2].encode("utf-8", "surrogateescape")) > room:
            raise fields.wrong(name, f"at most {room} letters")
        if name == "ElementDataFile":
            break
    return fields


def read_nrrd_header(path: Path) -> ItkHeader:
    """What the header says of its voxels. Raises `ReadError`."""
    fields = _nrrd_fields(path)
    n_axes = fields.axes("dimension")
    packing = fields.one_of("encoding", _PACKING)
    fields.integer("lineskip", 0)
    if packing != "raw" or fields.values.get("byteskip") != "-1":  # the voxels are the file's end
        fields.integer("byteskip", 0)
    return ItkHeader(
        math.prod(fields.sizes("sizes", n_axes)),
        fields.one_of("type", _NRRD_BYTES),
        packing,
        fields.file_beside("datafile") if "datafile" in fields.values else path,
    )


def _nrrd_fields(path: Path) -> Fields:
    fields, lines = Fields(path), header_lines(path)
    if next(lines, "") not in _MAGIC:
        raise ReadError(
            "The file is no NRRD image.", where=path, expected=f"first line {_MAGIC[-2]}"
        )
    for line in lines:
        if not line:
            return fields
        name, colon, value = line.partition(": ")
        field = name.replace(" ", "").lower()
        if colon and field in _NRRD_FIELDS:
            fields.add(field, value.lower() if field in _LOWER else value)
        elif not line.startswith("#") and ":=" not in name:
            raise no_field(path, "<field>: <value>, or <key>:=<value>")
    if "datafile" not in fields.values:
        raise ReadError(
            "The header has no end.", where=path, expected="an empty line before the voxels"
        )
    return fields
