"""The header of an NRRD file (`.nrrd`, `.nhdr`): lines `field: value`, `key:=value` and `# comment`
up to an empty line, behind which the voxels lie unless `data file` names another file.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from lesionseg.errors import ReadError
from lesionseg.io.formats.header_fields import Fields, ItkHeader, Packing, header_lines, no_field

_MAGIC = ("NRRD00.01", "NRRD0001", "NRRD0002", "NRRD0003", "NRRD0004", "NRRD0005")
# without spaces: the format knows each name with and without them
# fmt: off
_FIELDS = {
    "content", "number", "type", "blocksize", "dimension", "space", "spacedimension", "sizes",
    "spacings", "thicknesses", "axismins", "axismaxs", "spacedirections", "centers",
    "centerings", "kinds", "labels", "units", "min", "max", "oldmin", "oldmax", "endian",
    "encoding", "lineskip", "byteskip", "sampleunits", "spaceunits", "spaceorigin",
    "measurementframe", "datafile",
}
# fmt: on
_LOWER = ("type", "encoding")  # these values are alike in upper and lower case
_BYTES = {
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


def read_nrrd_header(path: Path) -> ItkHeader:
    """What the header says of its voxels. Raises `ReadError`."""
    fields = _fields(path)
    n_axes = fields.axes("dimension")
    packing = fields.one_of("encoding", _PACKING)
    fields.integer("lineskip", 0)
    if packing != "raw" or fields.values.get("byteskip") != "-1":  # the voxels are the file's end
        fields.integer("byteskip", 0)
    return ItkHeader(
        math.prod(fields.sizes("sizes", n_axes)),
        fields.one_of("type", _BYTES),
        packing,
        fields.file_beside("datafile") if "datafile" in fields.values else path,
    )


def _fields(path: Path) -> Fields:
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
        if colon and field in _FIELDS:
            fields.add(field, value.lower() if field in _LOWER else value)
        elif not line.startswith("#") and ":=" not in name:
            raise no_field(path, "<field>: <value>, or <key>:=<value>")
    if "datafile" not in fields.values:
        raise ReadError(
            "The header has no end.", where=path, expected="an empty line before the voxels"
        )
    return fields
