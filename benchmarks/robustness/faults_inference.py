"""What `predict` does about faults: bad files and a full disk. `kills.py` kills it.

    python benchmarks/robustness/faults_inference.py

One damaged scan of each kind lies among good ones; the table says what became of it and of them. A
full disk is one that refuses to write masks. The last line is JSON; exit status 1 when a promise
was broken.
"""

import argparse
import errno
import gzip
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import torch

from lesionseg.core import Geometry, Volume
from lesionseg.inference.bundles.bundle import write_bundle
from lesionseg.io.volumes import write_volume
from lesionseg.models.build import build_network
from lesionseg.pipeline.predict.predictions_table import TABLE
from lesionseg.pipeline.predict.recipe import predict
from lesionseg.pipeline.predict.study_table import STUDY
from lesionseg.plan.plan import Architecture, Normalisation, Plan

SHAPE = (40, 48, 44)
N_GOOD = 3


def main() -> None:
    """Try every fault, and print what became of it."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    logging.getLogger("lesionseg").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bundle(folder / "bundle", *small_bundle(), "")
        rows = [try_fault(folder, fault) for fault in FAULTS]
        rows.append(full_disk(folder))
    print(f"{'fault':<24}{'done':>6}{'kept':>6}{'failed':>8}{'as it must':>12}  message")
    for row in rows:
        held = "yes" if row["held"] else "NO"
        print(
            f"{row['fault']:<24}{row['done']:>6}{row['kept']:>6}{row['failed']:>8}{held:>12}  "
            f"{row['message'][:80]}"
        )
    plain = [{k: v for k, v in row.items() if k != "message"} for row in rows]
    print(json.dumps({"bench": "faults_inference", "rows": plain}))
    sys.exit(not all(row["held"] for row in rows))


def small_bundle() -> tuple[torch.nn.Module, Plan]:
    """A small network that finds something."""
    plan = Plan(
        dims=3,
        modality="mri",
        channel_names=("FLAIR",),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=(1.0, 1.0, 1.0),
        normalisation=(Normalisation("zscore"),),
        tile_shape=(16, 16, 16),
        batch_size=2,
        architecture=Architecture("unet", (4, 8), ((1,) * 3, (2,) * 3), ((3,) * 3,) * 2, 1, 2),
        lesion_fraction=0.3,
    )
    return build_network(plan, seed=0).eval(), plan


def scan(seed: int) -> Volume:
    """A ball with bright spots in noise, on a turned grid."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE)]
    image = np.where(sum(a**2 for a in axes) < 0.7, 300, 3) + rng.normal(0, 9, SHAPE)
    image[12:16, 20:25, 22:27] += 300
    affine = np.array([[0, -1.0, 0, 3], [0.9, 0, 0, 7], [0, 0, -1.1, 0], [0, 0, 0, 1]])
    return Volume(image.astype(np.int16)[None], Geometry(SHAPE, affine))


def write_good(folder: Path) -> None:
    """The undamaged scans."""
    for seed in range(N_GOOD):
        write_volume(folder / f"good{seed}.nii.gz", scan(seed))


def truncated(path: Path) -> None:
    """Half a gzip file."""
    write_volume(path, scan(9))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wrong_magic(path: Path) -> None:
    """Something else under the name of an image."""
    path.write_bytes(gzip.compress(b"no image at all" * 99))


def empty(path: Path) -> None:
    """Zero bytes."""
    path.write_bytes(b"")


def huge_claim(path: Path) -> None:
    """A header of 10^12 voxels."""
    header = nib.Nifti2Header()
    header.set_data_shape((10_000, 10_000, 10_000))
    header.set_data_dtype(np.int16)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4096)))


def four_axes(path: Path) -> None:
    """A series over time."""
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9, 3), np.int16), np.eye(4)), path)


def missing_channel(path: Path) -> None:
    """The second channel of a case, the first one lost."""
    write_volume(path, scan(9))
    path.rename(path.with_name("bad_0001.nii.gz"))
    write_volume(path.with_name("bad_0000.nii.gz"), scan(9))


def sheared(path: Path) -> None:
    """Axes that are not at right angles: an affine as of a tilted gantry."""
    affine = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0.2, 1, 0], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(scan(9).array[0], affine), path)


def singular(path: Path) -> None:
    """An affine of zeros."""
    image = nib.Nifti1Image(scan(9).array[0], np.eye(4))
    raw = bytearray(image.to_bytes())
    raw[252:256] = bytes((0, 0, 1, 0))  # no qform, sform code 1
    raw[280:328] = bytes(48)  # its three rows
    path.write_bytes(gzip.compress(raw))


def constant(path: Path) -> None:
    """The same value everywhere."""
    volume = scan(9)
    write_volume(path, Volume(np.full_like(volume.array, 7), volume.geometry))


def not_numbers(path: Path) -> None:
    """A NaN."""
    volume = scan(9)
    array = volume.array.astype(np.float32)
    array[0, 3, 3, 3] = np.nan
    write_volume(path, Volume(array, volume.geometry))


# what makes the scan `bad.nii.gz`, and what must become of it
FAULTS: tuple[tuple[Callable[[Path], None], str], ...] = (
    (truncated, "failed"),
    (wrong_magic, "failed"),
    (empty, "failed"),
    (huge_claim, "failed"),
    (four_axes, "failed"),
    (missing_channel, "failed"),
    (sheared, "done"),
    (singular, "failed"),
    (constant, "done"),
    (not_numbers, "failed"),
)


def try_fault(folder: Path, fault: tuple[Callable[[Path], None], str]) -> dict[str, object]:
    """One damaged scan among good ones."""
    spoil, expected = fault
    source, output = folder / spoil.__name__, folder / f"{spoil.__name__}_out"
    write_good(source)
    spoil(source / "bad.nii.gz")
    rows = predict(folder / "bundle", source, output)
    bad = [row for row in rows if row.case.startswith("bad")]
    good = [row for row in rows if row not in bad]
    held = len(good) == N_GOOD and all(row.status == "done" for row in good)
    held &= len(bad) == 1 and bad[0].status == expected
    held &= leftovers(output, {row.case for row in rows if row.status != "failed"}) == []
    return outcome(spoil.__name__, rows, held, bad[0].message)


def full_disk(folder: Path) -> dict[str, object]:
    """No room for the second case's mask; then room, and the same command again."""
    source, output = folder / "full", folder / "full_out"
    write_good(source)
    save = nib.save

    def refuse(image: object, path: Path) -> None:
        if "good1_mask" in str(path):
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(image, path)

    with mock.patch("nibabel.save", refuse):
        first = predict(folder / "bundle", source, output)
    left = leftovers(output, {"good0", "good2"})
    again = predict(folder / "bundle", source, output)
    held = [row.status for row in first] == ["done", "failed", "done"] and left == []
    held &= [row.status for row in again] == ["kept", "done", "kept"]
    return outcome("full disk, then again", again, held, first[1].message)


def leftovers(output: Path, cases: set[str]) -> list[str]:
    """Files that belong to no case that succeeded, half-written ones among them."""
    names = [p.name for p in output.rglob("*") if p.is_file() and p.name not in (TABLE, STUDY)]
    return [name for name in names if not any(name.startswith(f"{case}_") for case in cases)]


def outcome(fault: str, rows: object, held: bool, message: str) -> dict[str, object]:
    """A line of the table."""
    count = Counter(row.status for row in rows)  # type: ignore[attr-defined]
    statuses = {status: count[status] for status in ("done", "kept", "failed")}
    return {"fault": fault, **statuses, "held": bool(held), "message": message.split("\n")[0]}


if __name__ == "__main__":
    main()
