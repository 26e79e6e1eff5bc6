"""The header of a MetaImage (`.mha`, `.mhd`): lines `name = value`, the last of them
`ElementDataFile`, which names the file with the voxels or is LOCAL.
"""

import math
import re
from pathlib import Path

from lesionseg.io.formats.header_fields import Fields, ItkHeader, header_lines, no_field

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
_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_BOOLEANS = {
    **dict.fromkeys(("True", "true", "TRUE", "1"), True),
    **dict.fromkeys(("False", "false", "FALSE", "0"), False),
}


def read_metaimage_header(path: Path) -> ItkHeader:
    """What the header says of its voxels. Raises `ReadError`."""
    fields = _fields(path)
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
        fields.one_of("ElementType", _BYTES),
        "text" if as_text else "compressed" if compressed else "raw",
        path if local else fields.file_beside("ElementDataFile"),
        fields.integer("CompressedDataSize", 0),
    )


def _fields(path: Path) -> Fields:
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
