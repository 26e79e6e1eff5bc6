"""Which scans `predict` warns of: those like the training scans, and those changed or of others.

    python benchmarks/robustness/input_check.py run=RUN data=DIR [wrong=DIR,DIR] [most=40]
    python benchmarks/robustness/input_check.py channels=DIR
    python benchmarks/robustness/input_check.py figure=FILE.svg run=RUN data=DATASET [run=… data=…]

RUN is a finished training run, DIR an nnU-Net folder or COCO images whose cases were no training
cases (`imagesTs`, or `images` without the run's own). Every one is looked at as it is and in each
changed way, and every image in `wrong`. One line per way: the share warned of, the median score.
`channels`: an nnU-Net folder of several channels. Eighths of its cases stand for scans; each case's
are compared with all others' by the image alone, with their channels in every order. `figure`:
labelled cases that were no training cases are changed step by step, predicted and judged; drawn is
the sensitivity of each against the score of the warning, and a line per range of it is printed.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, permutations, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from lesionseg.core import CaseFiles, Geometry, InputVerdict, Volume
from lesionseg.data.onto_grid import normalise
from lesionseg.errors import LesionsegError
from lesionseg.evaluation import find_preset, match_case
from lesionseg.inference.bundles.bundle import read_bundle
from lesionseg.inference.input_check import judge_input, make_input_check
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.scan_statistics import ScanStatistics, image_statistics
from lesionseg.io.atomic import atomic_path, read_json
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.volumes import read_volume
from lesionseg.plan.plan import Architecture, Normalisation, Plan
from lesionseg.report.figures.chart_drawing import ACCENT, FOUND, INK, draw_svg, tidy

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

THICKER = 4
RANGES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, np.inf)  # of the warning's score
Change = Callable[[Volume], Volume]


def with_array(volume: Volume, array: np.ndarray) -> Volume:
    """The volume with other values; its first axis may have become shorter."""
    grid = Geometry(array.shape[1:], volume.geometry.affine)
    return Volume(np.ascontiguousarray(array, dtype=np.float32), grid)


def shifted(volume: Volume, power: float = 2.5) -> Volume:
    """Contrast bent: what is in the middle becomes dark."""
    low, width = volume.array.min(), max(float(np.ptp(volume.array)), 1e-6)
    return with_array(volume, low + width * ((volume.array - low) / width) ** power)


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


def blurred(volume: Volume, voxels: float = 2.0) -> Volume:
    """A Gaussian of two voxels."""
    sigma = (0.0,) + (voxels,) * volume.geometry.dims
    return with_array(volume, ndimage.gaussian_filter(volume.array, sigma))


def noisy(volume: Volume, share: float) -> Volume:
    """Noise of so many standard deviations of the scan."""
    noise = np.random.default_rng(0).normal(size=volume.array.shape)
    return with_array(volume, volume.array + share * volume.array.std() * noise)


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


# by kind, ever stronger; the grid stays, and with it the reference
STEPS: Mapping[str, tuple[Change, ...]] = {
    "contrast bent": tuple(partial(shifted, power=p) for p in (0.6, 0.8, 1.0, 1.3, 1.8, 2.5)),
    "blurred": tuple(partial(blurred, voxels=s) for s in (0.4, 0.7, 1.0, 1.5, 2.0)),
    "noise added": tuple(partial(noisy, share=s) for s in (0.05, 0.1, 0.2, 0.4)),
}


@dataclass(frozen=True)
class Judged:
    """A scan changed in some way: the warning's score, its lesions and those found."""

    kind: str
    score: float
    n_lesions: int
    n_found: int


def judged(run: Path, data: Path, most: int) -> Iterator[Judged]:
    """Labelled cases with lesions that were no training cases, in all steps."""
    predictor, dataset = Predictor(read_bundle(run)), read_dataset(data)
    trained, preset = read_json(run / "splits.json")["roles"], find_preset("lesionseg")
    cases = [c for c in dataset.cases if trained.get(c.case) != "train"]
    for files in cases[:: max(1, len(cases) // most)]:
        case = read_case(files, dataset)
        for kind, steps in STEPS.items():
            for change in steps if case.reference is not None else ():
                prediction = predictor.predict_volume(change(case.image), case.case)
                match = match_case(case.reference, prediction, preset, case=case.case)
                found = match.result(surface=False)
                score = prediction.input.score if prediction.input else None
                if found.lesions and score is not None:
                    yield Judged(kind, score, len(found.lesions), found.n_detected)


def draw_recall(onto: "FigureBase", rows: Sequence[Judged]) -> None:
    """Each changed scan, and the sensitivity over all lesions in each range of the score."""
    axes = onto.subplots()
    for (kind, marker), colour in zip(
        zip(STEPS, "os^", strict=True), (INK, FOUND, ACCENT), strict=True
    ):
        some = [row for row in rows if row.kind == kind]
        recall = [row.n_found / row.n_lesions for row in some]
        axes.plot(
            [r.score for r in some], recall, marker, color=colour, alpha=0.5, label=kind, ms=4
        )
    for low, high, part in ranges(rows):
        recall_of_part = sum(r.n_found for r in part) / sum(r.n_lesions for r in part)
        right = min(high, max(r.score for r in rows))
        axes.plot((low, right), (recall_of_part,) * 2, color=INK, linewidth=2)
    axes.axvline(1.0, color=INK, linestyle=":", linewidth=1)
    axes.set(xlabel="score of the warning (warned of above 1)", ylim=(-0.03, 1.03), xlim=(0, None))
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")
    tidy(axes, "sensitivity")


def ranges(rows: Sequence[Judged]) -> Iterator[tuple[float, float, list[Judged]]]:
    """The rows of each range of the score, where there are any."""
    for low, high in pairwise(RANGES):
        part = [row for row in rows if low <= row.score < high]
        if part:
            yield low, high, part


def recall_figure(figure: Path, runs: Sequence[Path], data: Sequence[Path], most: int) -> None:
    """Draw the figure and print its ranges."""
    rows = [row for pair in zip(runs, data, strict=True) for row in judged(*pair, most)]
    print(
        "| score of the warning | changed scans | lesions found | sensitivity |\n|---|---|---|---|"
    )
    for low, high, part in ranges(rows):
        found, n = sum(r.n_found for r in part), sum(r.n_lesions for r in part)
        print(f"| {low:g} to {high:g} | {len(part)} | {found} of {n} | {found / n:.2f} |")
    with atomic_path(figure) as path:
        path.write_bytes(draw_svg(partial(draw_recall, rows=rows), 3.6).svg)


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
    given = [argument.split("=", 1) for argument in sys.argv[1:]]
    options = dict(given)
    if "figure" in options:
        runs, data = ([Path(value) for k, value in given if k == key] for key in ("run", "data"))
        recall_figure(Path(options["figure"]), runs, data, int(options.get("most", 40)))
        return
    if "channels" in options:
        folder = Path(options["channels"])
        names = read_json(folder / "dataset.json")["channel_names"]
        channel_orders(folder / "imagesTr", len(names))
        return
    run, folder = Path(options["run"]), Path(options["data"])
    predictor = Predictor(read_bundle(run))
    trained = read_json(run / "splits.json")["roles"]
    n_channels = len(predictor.plan.channel_names)
    cases = [c for c in find_images(folder, n_channels) if trained.get(c.case) != "train"]
    cases = cases[:: max(1, len(cases) // int(options.get("most", 40)))]
    scans = [predictor.scans.read(files) for files in cases]
    print("| scans | warned | median score | such as |\n|---|---|---|---|")
    for name, change in CHANGES.items():
        if name != "channels swapped" or n_channels > 1:
            print(line(name, [verdict(predictor, change(scan)) for scan in scans]), flush=True)
    for other in options.get("wrong", "").split(",") if options.get("wrong") else ():
        others = volumes(predictor, find_images(Path(other), 1)[:40])
        print(line(Path(other).parent.name, [verdict(predictor, v) for v in others]), flush=True)


if __name__ == "__main__":
    main()
