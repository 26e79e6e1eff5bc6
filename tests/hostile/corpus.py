"""Hostile files of every format and field, made from valid ones by a seed; nothing is fetched."""

import copy
import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from safetensors.torch import save as save_tensors

from lesionseg.models.build import build_network
from lesionseg.plan.fingerprint import ChannelStatistics, Fingerprint, Spread
from lesionseg.plan.plan import Architecture, Normalisation, Plan
from tests.io.dicom_files import CT, DX, save

PLAN = Plan(
    dims=3,
    modality="mri",
    channel_names=("T1",),
    label_values=(1,),
    label_names=("lesion",),
    spacing_mm=(1.0, 1.0, 1.0),
    normalisation=(Normalisation("zscore"),),
    tile_shape=(16, 16, 16),
    batch_size=2,
    architecture=Architecture("unet", (4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), 1, 2),
    lesion_fraction=0.01,
)
FINGERPRINT = Fingerprint(
    dims=3,
    modality="mri",
    channels=(ChannelStatistics("T1", False, Spread(1, 1, 0, 2), Spread(1, 1, 0, 2), 0.5),),
    shapes=((4, 5, 6),),
    spacings_mm=((1.0, 1.0, 1.0),),
    lesions_per_case=(1,),
    diameters_mm=(3.0,),
    lesion_voxels=(4,),
    lesion_fraction=0.01,
)

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
PICTURE = (np.arange(20 * 16) % 256).astype(np.uint8).reshape(20, 16)
NUMBERS = (0, -1, 1, 3, 7, 255, 2**15 - 1, 2**31 - 1)
FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"))
# what may stand anywhere in a JSON document
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 0.5, 10**9, 10**30, float("nan"), float("inf")),
    *("", "x", "..", "/etc/passwd", "a\0b", "\u202e", "x" * 10**5),
    *([], {}, [[]], {"a": 1}, [None] * 3, [1, 2, 3, 4]),
)
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "deep list": b"[" * 200_000,
    "deep object": b'{"a":' * 100_000,
    "not UTF-8": b"\xff\xfe\x00\x01",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a number of 10000 digits": b"[" + b"9" * 10_000 + b"]",
    "a list": b"[1, 2]",
    "a text": b'"x"',
    "cut off": b'{"a": [1, ',
    "NaN": b'{"a": NaN}',
}


@dataclass(frozen=True)
class HostileFile:
    """One attempt: of which `kind`, what was done to it, its name and content.

    `beside` are valid files of the same folder.
    """

    kind: str
    deed: str
    name: str
    content: bytes
    beside: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write it, and what stands beside it, below a folder; returns its path."""
        for name, content in {**self.beside, self.name: self.content}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder / self.name


def corpus(seed: int = 0) -> list[HostileFile]:
    """All files, the same for the same seed."""
    rng = np.random.default_rng(seed)
    makers: tuple[Callable[[np.random.Generator], Iterator[HostileFile]], ...]
    makers = (_nifti, _text_headers, _rasters, _dicom, _documents, _tables)
    return [file for make in makers for file in make(rng)]


def _gzip(content: bytes, level: int = 9) -> bytes:
    return gzip.compress(content, level, mtime=0)


def _damaged(
    rng: np.random.Generator, kind: str, name: str, content: bytes, n: int = 6
) -> Iterator[HostileFile]:
    """Cut off, with bytes turned over, garbage in front, garbage behind, and all of it garbage."""
    for share in (0.0, 0.1, 0.5, 0.9):
        yield HostileFile(kind, f"cut to {share:.0%}", name, content[: int(share * len(content))])
    for number in range(n):
        flipped = bytearray(content)
        for at in rng.integers(0, len(content), 1 + 4 * number):
            flipped[at] = rng.integers(256)
        yield HostileFile(kind, f"bytes turned over, {number}", name, bytes(flipped))
    yield HostileFile(kind, "garbage in front", name, rng.bytes(9) + content)
    yield HostileFile(kind, "garbage behind", name, content + rng.bytes(9))
    yield HostileFile(kind, "garbage", name, rng.bytes(1000))


def nifti(array: np.ndarray = VOXELS, kind: Any = nibabel.Nifti1Image) -> bytes:
    """A valid NIfTI file."""
    image = kind(array.T, np.diag([1.0, 1.0, 2.0, 1.0]))
    image.set_qform(image.affine, code=1)
    return bytes(image.to_bytes())


def _nifti(rng: np.random.Generator) -> Iterator[HostileFile]:
    plain = nifti()
    fields: tuple[tuple[str, int, str, tuple[Any, ...]], ...] = (
        *((f"dim[{i}]", 40 + 2 * i, "<h", (0, -1, 7, 2**15 - 1)) for i in range(8)),
        *(("datatype", 70, "<h", (0, 1, 32, 128, 1536, 2304, -1)),),
        *(("bitpix", 72, "<h", (0, -1, 1, 2**15 - 1)),),
        *((f"pixdim[{i}]", 76 + 4 * i, "<f", FLOATS) for i in range(4)),
        ("vox_offset", 108, "<f", (*FLOATS, 1e9, 351.0)),
        ("scl_slope", 112, "<f", FLOATS),
        ("scl_inter", 116, "<f", FLOATS),
        ("xyzt_units", 123, "<b", (0, 1, 7, -1)),
        *((f"{name}form_code", at, "<h", (0, -1, 9)) for name, at in (("q", 252), ("s", 254))),
        *((f"quatern[{i}]", 256 + 4 * i, "<f", FLOATS) for i in range(3)),
        *((f"srow[{i}]", 280 + 4 * i, "<f", FLOATS) for i in (0, 3, 5, 10)),
        ("magic", 344, "<i", (0, -1)),
        ("sizeof_hdr", 0, "<i", (0, -1, 540, 2**31 - 1)),
        ("extension", 348, "<i", (1, -1)),
    )
    for name, at, form, values in fields:
        for value in values:
            content = bytearray(plain)
            struct.pack_into(form, content, at, value)
            zipped = bool(rng.integers(2))
            data = _gzip(bytes(content)) if zipped else bytes(content)
            yield HostileFile("NIfTI", f"{name} {value}", f"a.nii{'.gz' * zipped}", data)
    yield from _damaged(rng, "NIfTI", "a.nii", plain)
    yield from _damaged(rng, "NIfTI", "a.nii.gz", _gzip(plain), 12)
    yield from _damaged(rng, "NIfTI", "a.nii", nifti(kind=nibabel.Nifti2Image))
    bomb = bytearray(nifti(np.zeros((1, 1, 1), np.uint8)))
    struct.pack_into("<8h", bomb, 40, 3, 2**15 - 1, 2**15 - 1, 64, 1, 1, 1, 1)
    zeros = _gzip(bytes(bomb) + bytes(2**26), 1)
    yield HostileFile("NIfTI", "a claim of 64 GiB before 64 MiB of zeros", "a.nii.gz", zeros)
    for shape in ((2, 2, 2, 2), (2, 2, 2, 1, 3), (1, 1, 1)):
        yield HostileFile("NIfTI", f"axes {shape}", "a.nii", nifti(np.zeros(shape, np.int16)))


def _text_headers(rng: np.random.Generator) -> Iterator[HostileFile]:
    data = VOXELS.tobytes()
    metaimage = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "CompressedData": "False",
        "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 1 1",
        "DimSize": "6 5 4",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    nrrd = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "6 5 4",
        "space directions": "(1,0,0) (0,1,0) (0,0,1)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(0,0,0)",
    }
    values = (
        *("", "-1", "0", "2000000000", "1e999", "nan nan nan", "9" * 400, "%n%n%n%n 1 8 1"),
        *("/etc/passwd", "../x", "LIST", "a b c d", "1 2", "(nan,0,0) (0,0,0) (0,0,inf)", "\x7f"),
    )
    for name in metaimage:
        for value in values:
            header = "".join(f"{k} = {v}\n" for k, v in {**metaimage, name: value}.items())
            content = header.encode() + data
            yield HostileFile("MetaImage", f"{name} {value[:20]!r}", "a.mha", content)
    extra = {"data file": "", "byte skip": "", "line skip": "", "measurement frame": ""}
    for name in {**nrrd, **extra}:
        for value in values:
            header = "".join(f"{k}: {v}\n" for k, v in {**nrrd, name: value}.items())
            content = b"NRRD0004\n" + header.encode() + b"\n" + data
            yield HostileFile("NRRD", f"{name} {value[:20]!r}", "a.nrrd", content)
    lines = "".join(f"{k} = {v}\n" for k, v in metaimage.items()).encode()
    yield from _damaged(rng, "MetaImage", "a.mha", lines + data, 20)
    lines = b"NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in nrrd.items()).encode() + b"\n"
    yield from _damaged(rng, "NRRD", "a.nrrd", lines + data, 20)
    packed = lines.replace(b"raw", b"gzip")
    yield from _damaged(rng, "NRRD", "a.nrrd", packed + _gzip(data), 20)
    large = lines.replace(b"6 5 4", b"1024 1024 1000").replace(b"raw", b"gzip")
    zeros = _gzip(bytes(2**26), 1)
    yield HostileFile("NRRD", "2 GB claimed, 64 MiB there", "a.nrrd", large + zeros)


def _png(width: int, height: int, bits: int = 8, colour: int = 0, data: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    )
    packed = (
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _rasters(rng: np.random.Generator) -> Iterator[HostileFile]:
    for side in (0, 1, 2**16, 2**31 - 1):
        for bits, colour in ((8, 0), (16, 6), (1, 3), (3, 9)):
            deed = f"{side} pixels wide, {bits} bits, colour {colour}"
            yield HostileFile("PNG", deed, "a.png", _png(side, side, bits, colour, bytes(100)))
    bomb = _png(30_000, 30_000, 1, 0, bytes(30_000 * 3751))
    yield HostileFile("PNG", "900 million pixels in 110 KB", "a.png", bomb)
    image = Image.fromarray(PICTURE)
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "ICO", "PPM", "TGA"):
        known = {"PNG": "a.png", "JPEG": "a.jpg", "BMP": "a.bmp", "TIFF": "a.tif"}
        name = known.get(kind, "a.png")
        yield from _damaged(rng, name[2:].upper(), name, _encoded(image, kind), 8)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) = quit\n"
    yield HostileFile("PNG", "an EPS by its content", "a.png", eps)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate"):
        stream = io.BytesIO()
        image.save(stream, format="TIFF", compression=compression)
        content = stream.getvalue()
        yield from _damaged(rng, "TIF", "a.tif", content, 10)
        offset = struct.unpack_from("<I", content, 4)[0]
        for entry in range(struct.unpack_from("<H", content, offset)[0]):
            for value in (0, 1, 2**31 - 1):
                changed = bytearray(content)
                struct.pack_into("<I", changed, offset + 2 + 12 * entry + 8, value)
                yield HostileFile("TIF", f"tag {entry} {value}", "a.tif", bytes(changed))


def _dicom(rng: np.random.Generator) -> Iterator[HostileFile]:
    values: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("Rows", "Columns"), (0, 1, 65535)),
        "NumberOfFrames": (0, -1, 2, 2**31 - 1),
        "SamplesPerPixel": (0, 3, 65535),
        **dict.fromkeys(("BitsAllocated", "BitsStored", "HighBit"), (0, 1, 7, 64, 65535)),
        "PixelRepresentation": (2,),
        "PhotometricInterpretation": ("", "YBR_FULL", "x"),
        "PixelSpacing": ([-1, 1], [0, 0], ["1e300", 1], [1], [1, 1, 1]),
        "ImageOrientationPatient": ([0] * 6, [1] * 6, ["1e300"] * 6, [1, 0, 0]),
        "ImagePositionPatient": (["1e300"] * 3, [1], [1, 2, 3, 4]),
        **dict.fromkeys(("RescaleSlope", "RescaleIntercept"), ("1e300", 0, -1, "1e-300")),
        "SliceThickness": (0, -1, "1e300"),
        "WindowCenter": (["1e300"], [1, 2, 3]),
        "SmallestImagePixelValue": (1,),
        "PixelPaddingValue": (0, 1),
        "SpecificCharacterSet": ("ISO_IR 9999", ["", "x"]),
        "PixelData": (b"", b"\0", bytes(10**6)),
    }
    for base, kind in ((_base(CT), "slice"), (_base(DX), "radiograph")):
        for name, changes in values.items():
            for value in changes:
                content = _saved(base, {name: value})
                shown = repr(value)[:20]
                yield HostileFile("DICOM", f"{kind}: {name} {shown}", "a.dcm", content)
    plain = _base(CT)
    yield from _damaged(rng, "DICOM", "a.dcm", plain, 30)
    for syntax in (
        RLELossless,
        JPEGBaseline8Bit,
        JPEG2000Lossless,
        JPEGLosslessSV1,
        JPEGLSLossless,
    ):
        for pieces in (
            [rng.bytes(300)],
            [bytes(2)],
            [b"\xff\xd8\xff\xd9"],
            [b"\0\0\0\x0cjP  \r\n\x87\n"],
        ):
            content = _saved(plain, {"PixelData": encapsulate(pieces)}, syntax)
            yield HostileFile("DICOM", f"{syntax.name}, {pieces[0][:4]!r}", "a.dcm", content)
    for part in _damaged(rng, "JPEG", "", _encoded(Image.fromarray(PICTURE), "JPEG"), 10):
        data = encapsulate([part.content.ljust(2, b"\0")])
        content = _saved(plain, {"PixelData": data}, JPEGBaseline8Bit)
        yield HostileFile("DICOM", f"JPEG in it, {part.deed}", "a.dcm", content)
    yield HostileFile("DICOM", "64 MiB deflated", "a.dcm", _deflated(plain, bytes(2**26)))
    yield HostileFile("DICOM", "damaged deflated", "a.dcm", _deflated(plain, b"")[:-9])


def _base(sop_class: str) -> bytes:
    """A valid slice or radiograph."""
    elements = {
        "Modality": "CT",
        "ImagePositionPatient": [0, 0, 0],
        "PixelSpacing": [1, 1],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SliceThickness": 1,
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
    }
    with TemporaryDirectory() as folder:
        path = save(Path(folder) / "a.dcm", PICTURE.astype(np.uint16), sop_class, **elements)
        made, stream = pydicom.dcmread(path), io.BytesIO()
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _saved(base: bytes, changes: dict[str, Any], syntax: Any = None) -> bytes:
    """The file with other elements; nothing where pydicom will not write them."""
    made, stream = pydicom.dcmread(io.BytesIO(base)), io.BytesIO()
    try:
        for name, value in changes.items():
            setattr(made, name, value)
        if syntax is not None:
            made.file_meta.TransferSyntaxUID = syntax
            made["PixelData"].is_undefined_length = True
        made.save_as(stream, enforce_file_format=True)
    except (ValueError, TypeError, OverflowError, struct.error):
        return b""
    return stream.getvalue()


def _deflated(base: bytes, behind: bytes) -> bytes:
    start = 144 + int.from_bytes(base[140:144], "little")
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(base[start:] + behind) + packer.flush()
    old, new = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
    meta = base[:start].replace(struct.pack("<H", 20) + old, struct.pack("<H", 22) + new)
    length = int.from_bytes(meta[140:144], "little") + 2
    return meta[:140] + struct.pack("<I", length) + meta[144:] + packed


def _documents(rng: np.random.Generator) -> Iterator[HostileFile]:
    image, mask = nifti(), nifti((VOXELS == 50).astype(np.uint8))
    pair = {"imagesTr/a_0000.nii": image, "labelsTr/a.nii": mask}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 5, 5], "iscrowd": 0}
    rle = {"counts": "PPYo1", "size": [20, 16]}
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 16, "height": 20, "patient": "p"}],
        "annotations": [
            {**box, "segmentation": [[2, 2, 7, 2, 7, 7, 2, 7]]},
            {**box, "id": 2, "segmentation": {"counts": [30, 4, 286], "size": [20, 16]}},
            {**box, "id": 3, "segmentation": rle},
        ],
        "categories": [{"id": 1, "name": "lesion"}],
        "info": {"incomplete_reference": False},
    }
    nnunet = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "lesion": 1, "ignore": 2},
        "numTraining": 1,
        "file_ending": ".nii",
    }
    datalist = {
        "training": [{"image": "a.nii", "box": [[3, 3, 2, 2, 2, 2]], "label": [0], "fold": 0}],
        "box_mode": "cccwhd",
        "box_space": "voxel",
        "name": "x",
    }
    candidate = {"id": 1, "label": 1, "score": 0.5, "start_vox": [0, 0, 0], "stop_vox": [2, 2, 2]}
    candidates = {
        "schema_version": 1,
        "case": "a",
        "voxel_threshold": 0.5,
        "operating_point": {"name": "score:0.4", "score": 0.4, "chosen_on": None},
        "candidates": [{**candidate, "centre_mm": [1, 1, 1], "diameter_mm": 2.0, "accepted": True}],
    }
    instances = {"instances": {"1": 0}}
    splits = {"roles": {"a": "train", "b": "test"}, "group_safe": True, "seed": 0, "note": "x"}
    folds = [{"train": ["a"], "val": ["b"]}]
    png = {"images/a.png": _encoded(Image.fromarray(PICTURE), "PNG")}
    detection = {"dataset.json": b'{"labels": {"0": "n"}, "modalities": {"0": "CT"}}', **pair}
    table = {"manifest.csv": b"case,image,reference\na,a.nii,m.nii\n"}
    for kind, name, content, beside in (
        ("nnU-Net dataset.json", "dataset.json", nnunet, pair),
        ("COCO annotations.json", "annotations.json", coco, png),
        ("datalist", "list.json", datalist, {"a.nii": image}),
        ("nnDetection JSON", "labelsTr/a.json", instances, detection),
        ("labels.json", "labels.json", {"1": "x"}, {**table, "a.nii": image, "m.nii": mask}),
        ("candidates.json", "a_candidates.json", candidates, {}),
        ("plan.json", "plan.json", json.loads(PLAN.to_json()), {}),
        ("splits.json", "splits.json", splits, {}),
        ("splits.json", "splits.json", folds, {}),
        ("fingerprint.json", "fingerprint.json", json.loads(FINGERPRINT.to_json()), {}),
        ("bundle", "plan.json", json.loads(PLAN.to_json()), {"weights.safetensors": weights()}),
    ):
        for deed, text in _changed(rng, content):
            yield HostileFile(kind, deed, name, text, beside)
    plan = {"plan.json": PLAN.to_json().encode()}
    for file in _damaged(rng, "bundle", "weights.safetensors", weights(), 20):
        yield replace(file, beside=plan)


def weights() -> bytes:
    """Weights that fit the plan."""
    tensors = build_network(PLAN).state_dict()
    return save_tensors({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})


def _encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


def _changed(rng: np.random.Generator, content: Any) -> Iterator[tuple[str, bytes]]:
    """What was done to a document, and its text: some values at every place in it."""
    yield from TEXTS.items()
    for place in _places(content):
        for which in rng.choice(len(VALUES), 4, replace=False):
            changed = copy.deepcopy(content)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = VALUES[which]
            shown = repr(VALUES[which])[:20]
            yield f"{'.'.join(map(str, place))} {shown}", json.dumps(changed).encode()
    for key in content if isinstance(content, dict) else ():
        yield f"no {key}", json.dumps({k: v for k, v in content.items() if k != key}).encode()


def _places(node: Any) -> Iterator[tuple[Any, ...]]:
    """The way to every value below a node."""
    if not isinstance(node, dict | list):
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (key,)
        yield from ((key, *rest) for rest in _places(value))


def _tables(rng: np.random.Generator) -> Iterator[HostileFile]:
    files = {"a.nii": nifti(), "m.nii": nifti((VOXELS == 50).astype(np.uint8))}
    scan = {"subset0/a.nii": nifti()}
    manifest = ("case,image,reference,group,role,fold", "a,a.nii,m.nii,p,train,0")
    luna = ("seriesuid,coordX,coordY,coordZ,diameter_mm", "a,-2,-2,2,3")
    columns = "case,status,message,seconds,n_candidates,n_accepted,peak_memory_mb,bundle,input,key"
    earlier = (columns, "a,done,,1.0,1,1,100,b,i,k")
    cells = (
        *("", "..", ".", ".hidden", "/etc/passwd", "../../x", "a/b", "a\nb", "\u202etxt", "a\0b"),
        *("x" * 300, "漢" * 100, "=cmd|calc", '"', "nan", "inf", "1e999", "-1", "9" * 5000),
    )
    for kind, name, lines, beside in (
        ("manifest.csv", "manifest.csv", manifest, files),
        ("LUNA16 annotations.csv", "annotations.csv", luna, scan),
        ("predictions.csv", "predictions.csv", earlier, {}),
    ):
        head, row = lines
        whole = "\n".join(lines).encode()
        for deed, text in {
            "a header alone": head.encode(),
            "one name twice": f"{head},{head}\n{row}".encode(),
            "an open quote": whole + b'\n"a,b',
            "a row too long": whole + b",,,,,x",
            "UTF-16": whole.decode().encode("utf-16"),
            "Latin-1": whole + b"\n\xe9",
            "a cell of 1 MB": whole + b"\n" + b"x" * 10**6,
            "a row twice": whole + b"\n" + row.encode(),
            "10000 columns": b",".join([b"x"] * 10**4),
            "NUL": whole + b"\n\0",
            "semicolons": whole.replace(b",", b";"),
            **TEXTS,
        }.items():
            yield HostileFile(kind, deed, name, text, beside)
        for at, column in enumerate(head.split(",")):
            for cell in cells:
                values = row.split(",")
                values[at] = cell
                text = "\n".join((head, ",".join(values))).encode()
                yield HostileFile(kind, f"{column} {cell[:20]!r}", name, text, beside)
    alias = "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in pairwise("abcdefghi"))
    for name in ("study.yaml", "config.yaml"):
        for deed, text in {
            "aliases of 10⁸ values": ("a: &a [x]\n" + alias).encode(),
            "itself": b"a: &a [*a]",
            "a tag": b"a: !!python/object/apply:os.system [ls]",
            "a list as key": b"? [a]\n: b",
            "a date": b"n_found: 2020-13-45",
            "a tab": b"a:\n\t- b",
            **TEXTS,
            "a number as key": b"1: 2\n_target_: 3",
            "a huge number": b"n_found: " + b"9" * 5000,
        }.items():
            yield HostileFile(name, deed, name, text)
        yield from _damaged(rng, name, name, b"_target_: x\ndata:\n  root: y\n" * 9)
