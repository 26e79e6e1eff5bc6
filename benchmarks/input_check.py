"""Which scans `predict` warns of: those like the training scans, and those changed or of others.

    python benchmarks/input_check.py run=RUN data=DIR [wrong=DIR,DIR] [most=40]
    python benchmarks/input_check.py channels=DIR

RUN is a finished training run, DIR an nnU-Net folder or COCO images whose cases were no training
cases (`imagesTs`, or `images` without the run's own). Every one is looked at as it is and in each
changed way, and every image in `wrong`. One line per way: the share warned of, the median score.
`channels`: an nnU-Net folder of several channels. Eighths of its cases stand for scans; each case's
are compared with all others' by the image alone, with their channels in every order.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
from scipy import ndimage

from lesionseg.core import CaseFiles, Geometry, InputVerdict, Volume
from lesionseg.data.onto_grid import normalise
from lesionseg.errors import LesionsegError
from lesionseg.inference.bundles.bundle import read_bundle
from lesionseg.inference.input_check import judge_input, make_input_check
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.scan_statistics import ScanStatistics, image_statistics
from lesionseg.io.atomic import read_json
from lesionseg.io.formats.volumes import read_volume
from lesionseg.io.layouts.input_images import find_images
from lesionseg.plan.plan import Architecture, Normalisation, Plan

THICKER = 4
Change = Callable[[Volume], Volume]


def with_array(volume: Volume, array: np.ndarray) -> Volume:
    """The volume with other values; its first axis may have become shorter."""
    grid = Geometry(array.shape[1:], volume.geometry.affine)
    return Volume(np.ascontiguousarray(array, dtype=np.float32), grid)


def shifted(volume: Volume) -> Volume:
    """Contrast bent: what is in the middle becomes dark."""
    low, width = volume.array.min(), max(float(np.ptp(volume.array)), 1e-6)
    return with_array(volume, low + width * ((volume.array - low) / width) ** 2.5)


def raised(volume: Volume) -> Volume:
    """Values stored with 1024 more, as CT without its intercept is."""
    return with_array(volume, volume.array + 1024)


def inverted(volume: Volume) -> Volume:
    """Dark and bright exchanged."""
    return with_array(volume, volume.array.max() + volume.array.min() - volume.array)


def half_zeroed(volume: Volume) -> Volume:
    """The first half of the first axis is zero."""
    array = volume.array.copy()
    array[:, : array.shape[1] // 2] = 0
    return with_array(volume, array)


def thick_sliced(volume: Volume) -> Volume:
    """Four slices of the last spatial axis averaged into one; the header says so."""
    array, affine = volume.array, volume.geometry.affine.copy()
    n = array.shape[-1] // THICKER * THICKER
    merged = array[..., :n].reshape(*array.shape[:-1], -1, THICKER).mean(-1)
    affine[:, volume.geometry.dims - 1] *= THICKER
    return Volume(merged.astype(np.float32), Geometry(merged.shape[1:], affine))


def hidden_thick(volume: Volume) -> Volume:
    """The same brought back to the thin grid, so that the header does not say so."""
    thick = thick_sliced(volume)
    zoom = (1,) * (volume.array.ndim - 1) + (volume.array.shape[-1] / thick.array.shape[-1],)
    return with_array(
        volume, ndimage.zoom(thick.array, zoom, order=1, grid_mode=True, mode="nearest")
    )


def blurred(volume: Volume) -> Volume:
    """A Gaussian of two voxels."""
    sigma = (0,) + (2,) * volume.geometry.dims
    return with_array(volume, ndimage.gaussian_filter(volume.array, sigma))


def mirrored(volume: Volume) -> Volume:
    """Upside down, the header as before."""
    axis = 1 if volume.geometry.dims == 2 else volume.geometry.dims
    return with_array(volume, np.flip(volume.array, axis))


def turned(volume: Volume) -> Volume:
    """The first and the last axis exchanged, the header as before."""
    return with_array(volume, np.swapaxes(volume.array, 1, volume.geometry.dims))


def cropped(volume: Volume) -> Volume:
    """The middle half along each axis."""
    middle = tuple(slice(n // 4, n - n // 4) for n in volume.geometry.shape)
    return with_array(volume, volume.array[(slice(None), *middle)])


def swapped(volume: Volume) -> Volume:
    """The channels in the opposite order."""
    return with_array(volume, volume.array[::-1])


CHANGES: Mapping[str, Change] = {
    "as it is": lambda volume: volume,
    "contrast bent": shifted,
    "raised by 1024": raised,
    "inverted": inverted,
    "half zeroed": half_zeroed,
    "thick slices": thick_sliced,
    "thick slices, header thin": hidden_thick,
    "blurred": blurred,
    "upside down": mirrored,
    "axes exchanged": turned,
    "cropped to the middle half": cropped,
    "channels swapped": swapped,
}


def verdict(predictor: Predictor, volume: Volume) -> InputVerdict:
    """What `predict` would say of a volume."""
    prepared = predictor.scans.prepare(volume, "scan")
    network, check = predictor._networks[0], predictor._check
    grid = prepared.file_geometry
    return judge_input(check, prepared.image, grid, network, predictor.plan)


def volumes(predictor: Predictor, cases: list[CaseFiles]) -> Iterator[Volume]:
    """The scans that can be read as the model's; the others are refused, which is no silence."""
    n_channels = len(predictor.plan.channel_names)
    for files in cases:
        try:
            images = files.images[:1] * n_channels
            yield predictor.scans.read(replace(files, images=images, missing=()))
        except LesionsegError as error:
            print(f"  refused: {error.what}")


def line(name: str, verdicts: list[InputVerdict]) -> str:
    """Share warned of, median score, and a warning as it reads."""
    warned = [v for v in verdicts if v.warning]
    scores = [v.score for v in verdicts if v.score is not None]
    example = warned[len(warned) // 2].warning if warned else ""
    middle = f"{np.median(scores):.2f}" if scores else "–"
    return f"| {name} | {len(warned)} of {len(verdicts)} | {middle} | {example} |"


def eighths(files: CaseFiles) -> Iterator[np.ndarray]:
    """The eight parts of a case's bounding box, its channels normalised."""
    array = np.concatenate([read_volume(path).array for path in files.images]).astype(np.float32)
    inside = np.argwhere(array[0] != 0)
    box = tuple(map(slice, inside.min(0), inside.max(0) + 1))
    normalise(array, (Normalisation("zscore"),) * len(array))
    halves = [np.array_split(np.arange(s.start, s.stop), 2) for s in box]
    for part in product(*halves):
        yield array[(slice(None), *(slice(p[0], p[-1] + 1) for p in part))]


def statistics_of(part: np.ndarray) -> ScanStatistics:
    """What is compared of a part; all parts have one grid."""
    vectors, thumbnail = image_statistics(part)
    return ScanStatistics({**vectors, "grid": np.zeros(6)}, thumbnail)


def channel_orders(folder: Path, n_channels: int) -> None:
    """Print how many parts are warned of with their channels in each order."""
    parts = {f.case: list(eighths(f)) for f in find_images(folder, n_channels)}
    plan = Plan(
        dims=3,
        modality="mri",
        channel_names=tuple("ABCDEF"[:n_channels]),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=(1.0, 1.0, 1.0),
        normalisation=(Normalisation("zscore"),) * n_channels,
        tile_shape=(32, 32, 32),
        batch_size=1,
        architecture=Architecture("unet", (4,), ((1, 1, 1),), ((3, 3, 3),)),
        lesion_fraction=0.01,
    )
    verdicts: dict[tuple[int, ...], list[InputVerdict]] = {}
    for case, own in parts.items():
        others = [(name, p) for name, some in parts.items() if name != case for p in some]
        scans = [statistics_of(part) for _, part in others]
        check = make_input_check(scans, [name for name, _ in others], np.zeros((8, 6)))
        assert check is not None
        for order in permutations(range(n_channels)):
            found = (check(statistics_of(part[list(order)]), plan) for part in own)
            verdicts.setdefault(order, []).extend(found)
    print("| order | warned | median score | such as |\n|---|---|---|---|")
    for order, said in verdicts.items():
        print(line(" ".join(plan.channel_names[k] for k in order), said))


def main() -> None:
    """Print the table."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "channels" in options:
        folder = Path(options["channels"])
        names = read_json(folder / "dataset.json")["channel_names"]
        channel_orders(folder / "imagesTr", len(names))
        return
    run, data = Path(options["run"]), Path(options["data"])
    predictor = Predictor(read_bundle(run))
    trained = read_json(run / "splits.json")["roles"]
    n_channels = len(predictor.plan.channel_names)
    cases = [c for c in find_images(data, n_channels) if trained.get(c.case) != "train"]
    cases = cases[:: max(1, len(cases) // int(options.get("most", 40)))]
    scans = [predictor.scans.read(files) for files in cases]
    print("| scans | warned | median score | such as |\n|---|---|---|---|")
    for name, change in CHANGES.items():
        if name != "channels swapped" or n_channels > 1:
            print(line(name, [verdict(predictor, change(scan)) for scan in scans]), flush=True)
    for folder in options.get("wrong", "").split(",") if options.get("wrong") else ():
        others = volumes(predictor, find_images(Path(folder), 1)[:40])
        print(line(Path(folder).parent.name, [verdict(predictor, v) for v in others]), flush=True)


if __name__ == "__main__":
    main()
