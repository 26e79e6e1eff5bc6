"""Eighty damaged NIfTI files among good ones: each is named, and every good one is predicted."""

import csv
import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.golden.common import command
from tests.golden.small_network import phantom, write_bundle, write_nifti

# offsets in a NIfTI-1 header
DIM, DATATYPE, VOX_OFFSET, SFORM = 40, 70, 108, 280
Damage = Callable[[bytes, np.random.Generator], bytes]


def patched(
    offset: int, form: str, *values: float
) -> Callable[[bytes, np.random.Generator], bytes]:
    """The packed file with these values in its header."""

    def patch(file: bytes, rng: np.random.Generator) -> bytes:
        plain = bytearray(gzip.decompress(file))
        struct.pack_into(form, plain, offset, *values)
        return gzip.compress(bytes(plain))

    return patch


def cut(file: bytes, rng: np.random.Generator) -> bytes:
    return file[: int(rng.integers(1, len(file) - 8))]


def noise_inside(file: bytes, rng: np.random.Generator) -> bytes:
    begin = int(rng.integers(20, len(file) // 2))
    return file[:begin] + rng.bytes(200) + file[begin + 200 :]


def wrong_checksum(file: bytes, rng: np.random.Generator) -> bytes:
    return file[:-8] + rng.bytes(4) + file[-4:]


def few_voxels(file: bytes, rng: np.random.Generator) -> bytes:
    plain = gzip.decompress(file)
    return gzip.compress(plain[: int(rng.integers(352, len(plain) - 4000))])


def not_finite(file: bytes, rng: np.random.Generator) -> bytes:
    plain = bytearray(gzip.decompress(file))
    at = 352 + 4 * int(rng.integers(0, 500))
    plain[at : at + 4] = struct.pack("<f", rng.choice([np.nan, np.inf, -np.inf]))
    return gzip.compress(bytes(plain))


DAMAGES: dict[str, Damage] = {
    "cut": cut,
    "noise": noise_inside,
    "checksum": wrong_checksum,
    "few_voxels": few_voxels,
    "not_finite": not_finite,
    "empty": lambda file, rng: b"",
    "text": lambda file, rng: b"no image at all",
    "random": lambda file, rng: rng.bytes(3000),
    "magic": patched(344, "<4s", b"xyz\0"),
    "zero_dim": patched(DIM + 4, "<h", 0),
    "negative_dim": patched(DIM + 2, "<h", -5),
    "huge_dims": patched(DIM + 2, "<3h", 30000, 30000, 30000),
    "datatype": patched(DATATYPE, "<h", 12345),
    "far_offset": patched(VOX_OFFSET, "<f", 1e9),
    "huge_spacing": patched(SFORM, "<12f", 900, 0, 0, 0, 0, 900, 0, 0, 0, 0, 900, 0),
    "flat_affine": patched(SFORM, "<12f", 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0),
}


def test_eighty_damaged_files_fail_alone(tmp_path: Path) -> None:
    scans, output = tmp_path / "scans", tmp_path / "output"
    scans.mkdir()
    good = {f"good{seed}" for seed in range(6)}
    for seed, name in enumerate(sorted(good)):
        write_nifti(scans / f"{name}.nii.gz", phantom(seed))
    whole = (scans / "good0.nii.gz").read_bytes()
    bad = set()
    for damage, change in DAMAGES.items():
        for seed in range(5):
            name = f"{damage}{seed}"
            (scans / f"{name}.nii.gz").write_bytes(change(whole, np.random.default_rng(seed)))
            bad.add(name)
    assert len(bad) == 80
    bundle = write_bundle(tmp_path / "bundle")
    status = command("predict", bundle=bundle, input=scans, output=output, device="cpu")
    with (output / "predictions.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert status == 1
    assert {case for case, row in rows.items() if row["status"] == "done"} == good
    assert {case for case, row in rows.items() if row["status"] == "failed"} == bad
    assert all(case in rows[case]["message"] for case in bad)
    written = {path.name.split("_")[0] for path in output.glob("*_mask.nii.gz")}
    assert written == good
