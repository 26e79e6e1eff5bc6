"""Draw the figures of docs/focal.md, docs/results.md and benchmarks/notes.

    python docs/figures/make_figures.py

Writes focal_*.svg, results.svg and curves.svg next to this file, and the numbers that focal.md
quotes to focal_numbers.json. Values and gradients come from `sigmoid_focal_loss` and its backward
pass, those of trainings from benchmarks/results.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lesionseg.losses import sigmoid_focal_loss

INK, FOUND, ACCENT, GRID = "#1a1a1a", "#0072b2", "#d55e00", "#d9d9d9"
STYLES = ("-", "--", ":", "-.")
HERE = Path(__file__).resolve().parent
ROWS = HERE.parents[1] / "benchmarks" / "results"
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
COLOURS = (INK, "#56b4e9", FOUND, ACCENT, "#cc79a7")  # Okabe and Ito 2008
FRACTIONS = (1e-2, 1e-3, 1e-4)
# A calibrated detector half-way through training. Its evidence is normal in both kinds of voxels,
# with means that differ by 4 standard deviations (area under the ROC curve 0.998).
DISTANCE = 4.0
EASY = 0.1  # background that is given a lower probability than this is called easy
# The best α for each γ in table 1b of Lin et al. (arXiv 1708.02002)
PAPER = ((0.0, 0.75), (0.5, 0.5), (1.0, 0.25), (2.0, 0.25), (5.0, 0.25))
OURS, PEER = "ours, γ 1 (default), rate of train", "nnU-Net, cut plan"
FASTER = ("nodules_20_minutes", "heads_20_minutes")
COMPARED = (  # title, table, who teaches, column, label of the axis and its end
    ("LUNA nodules", "nodules_20_minutes", (None,), "accepted", "Dice, accepted", 1),
    ("simulated heads", "heads_20_minutes", (None,), "under 5 mm", "found < 5 mm, of 45", 45),
    ("MS, 26 trains", "ms_20_minutes", ("patient 26",), "under 10 mm", "found < 10 mm, of 100", 30),
    ("MS, 19 trains", "ms_20_minutes", ("patient 19",), "under 10 mm", "found < 10 mm, of 13", 13),
)

CURVES = "curves"  # table of trainings of 20 minutes and more
MEASURES = (  # column of the curves, column of its end (None: 1), name
    ("accepted_dice", None, "Dice, accepted"),
    ("found_under_10_at_1_FP", "lesions_under_10", "found < 10 mm"),
    ("found_under_5_at_1_FP", "lesions_under_5", "found < 5 mm"),
)
SETS = (("luna_nodules", "LUNA nodules"), ("heads", "simulated heads"))


@dataclass(frozen=True)
class Tool:
    """The look of a tool's curve.

    Attributes:
        key: its name in the table.
        name: its name in the figure.
        colour: colour of line, dots and text.
        style: style of the line. Equal curves stay visible if one of them is dashed.
        distance: distance of the steps above a dot, in points.
    """

    key: str
    name: str
    colour: str
    style: str
    distance: int


TOOLS = (
    Tool("lesionseg", "lesionseg", FOUND, "-", 7),
    Tool("nnunet_cut", "nnU-Net", ACCENT, "--", -14),
)


def main() -> None:
    """Draw them all."""
    mpl.rcParams.update({"svg.hashsalt": "lesionseg", "font.size": 10})
    write("focal_curves", curves, 3.6)
    write("focal_gradient_share", gradient_share, 3.6)
    write("focal_calibration", calibration, 3.8)
    write("focal_needle", needle, 2.8)
    write("results", comparison, 2.4)
    write("curves", minutes_curves, 4.2)
    text = json.dumps(numbers(), indent=2, ensure_ascii=False) + "\n"
    (HERE / "focal_numbers.json").write_text(text, encoding="utf-8")


def write(name: str, draw: Callable[[Figure], None], height: float) -> None:
    """Write one figure as SVG next to this file."""
    figure = Figure(figsize=(7.6, height), layout="constrained")
    draw(figure)
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


def loss_and_gradient(
    logits: NDArray[np.float64], is_lesion: bool, gamma: float, alpha: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Focal loss of each logit and its derivative in the logit, by the library."""
    x = torch.tensor(logits)[:, None].requires_grad_()
    target = torch.full(x.shape, float(is_lesion), dtype=torch.float64)
    loss = sigmoid_focal_loss(x, target, alpha=alpha, gamma=gamma, reduction="none")
    (slope,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach().numpy()[:, 0], slope.numpy()[:, 0]


def curves(onto: Figure) -> None:
    """Draw the loss, and the size of its gradient in the logit, against p_t."""
    left, right = onto.subplots(1, 2)
    p = np.linspace(1e-3, 1 - 1e-3, 400)
    for gamma, colour in zip(GAMMAS, COLOURS, strict=True):
        loss, slope = loss_and_gradient(np.log(p / (1 - p)), True, gamma, None)
        left.plot(p, loss, color=colour, label=f"γ = {gamma:g}")
        right.plot(p, np.abs(slope), color=colour)
    left.set(xlabel="probability of the truth, p_t", ylabel="loss", ylim=(0, 4), xlim=(0, 1))
    right.set(xlabel="probability of the truth, p_t", ylabel="|gradient in the logit|", xlim=(0, 1))
    left.legend(frameon=False)
    _tidy(left, right)


def shares(fraction: float, gamma: float, alpha: float) -> tuple[float, float, float]:
    """Shares of the absolute gradient from lesions, easy and other background."""
    prior = np.log(fraction / (1 - fraction))
    logits = np.linspace(-50, 50, 20001)
    # the log likelihood ratio of such evidence is normal too, with mean ±d²/2 and deviation d
    background, lesion = (
        np.exp(-(((logits - prior - sign * DISTANCE**2 / 2) / DISTANCE) ** 2) / 2)
        for sign in (-1, 1)
    )
    pull = np.abs(loss_and_gradient(logits, False, gamma, alpha)[1]) * background * (1 - fraction)
    push = np.abs(loss_and_gradient(logits, True, gamma, alpha)[1]) * lesion * fraction
    easy = logits < np.log(EASY / (1 - EASY))
    total = pull.sum() + push.sum()
    return push.sum() / total, pull[easy].sum() / total, pull[~easy].sum() / total


def gradient_share(onto: Figure) -> None:
    """Draw the lesion's share of the gradient against γ, at three lesion fractions."""
    gammas = np.linspace(0, 5, 51)
    panels = onto.subplots(1, len(FRACTIONS), sharey=True)
    for axes, fraction in zip(panels, FRACTIONS, strict=True):
        found = np.array([shares(fraction, g, 0.5) for g in gammas])
        names = ("lesions", "easy background", "other background")
        looks = ((FOUND, STYLES[0]), (INK, STYLES[1]), (ACCENT, STYLES[3]))
        for column, name, (colour, style) in zip(found.T, names, looks, strict=True):
            axes.plot(gammas, column, color=colour, linestyle=style, label=name)
        axes.set(title=f"lesions: {fraction:g} of the voxels", xlabel="γ", xlim=(0, 5), ylim=(0, 1))
        axes.title.set_fontsize(10)
    panels[0].set_ylabel("share of the gradient")
    panels[0].legend(frameon=False, fontsize=8.5)
    _tidy(*panels)


def minimiser(q: NDArray[np.float64], gamma: float, alpha: float) -> NDArray[np.float64]:
    """Return the probability that a network learns for a voxel that is lesion with chance q.

    It solves q·|slope for lesion| = (1 − q)·|slope for background| by bisection in the logit. The
    left side falls and the right side rises with the logit.
    """
    low, high = np.full_like(q, -60.0), np.full_like(q, 60.0)
    for _ in range(80):
        middle = (low + high) / 2
        push = np.abs(loss_and_gradient(middle, True, gamma, alpha)[1]) * q
        pull = np.abs(loss_and_gradient(middle, False, gamma, alpha)[1]) * (1 - q)
        low, high = np.where(push > pull, middle, low), np.where(push > pull, high, middle)
    return 1 / (1 + np.exp(-(low + high) / 2))


def calibration(onto: Figure) -> None:
    """Draw the learnt probability against the true chance, by γ and by α."""
    q = np.logspace(-4, np.log10(0.999), 200)
    left, right = onto.subplots(1, 2, sharey=True)
    for gamma, colour in zip(GAMMAS, COLOURS, strict=True):
        left.plot(q, minimiser(q, gamma, 0.5), color=colour, label=f"γ = {gamma:g}")
    for alpha, colour in zip((0.05, 0.25, 0.5, 0.75, 0.95), COLOURS, strict=True):
        right.plot(q, minimiser(q, 2.0, alpha), color=colour, label=f"α = {alpha:g}")
    for axes, title in ((left, "α = 0.5"), (right, "γ = 2")):
        axes.plot(q, q, color="#999999", linewidth=0.8, zorder=0)
        axes.set(xscale="log", yscale="log", xlim=(1e-4, 1), ylim=(1e-4, 1), title=title)
        axes.set_xlabel("true chance of lesion, q")
        axes.legend(frameon=False, fontsize=8.5, loc="lower right")
        axes.title.set_fontsize(10)
    left.set_ylabel("probability taught, p*")
    _tidy(left, right)


def needle(onto: Figure) -> None:
    """Draw losses and found lesions of two tools, three trainings each."""
    *panels, right = onto.subplots(1, 3)
    looks = (("lesionseg", FOUND), ("nnU-Net, cut plan", ACCENT))
    losses, found = read_rows("needle_losses"), read_rows("needle")
    for axes, (tool, colour) in zip(panels, looks, strict=True):
        for seed, style in zip("012", STYLES, strict=False):
            rows = [row for row in losses if row["tool"] == tool and row["seed"] == seed]
            steps, values = (
                [float(row[k]) for row in rows] for k in ("step", "mean loss of 50 steps")
            )
            axes.plot(
                steps, values, color=colour, linestyle=style, marker=".", label=f"seed {seed}"
            )
        axes.set(title=tool, xlabel="step", ylabel="training loss", xlim=(0, None))
    panels[0].set_ylim(0, None)
    panels[1].set_ylim(-1, 0.3)
    panels[0].legend(frameon=False, fontsize=8.5)
    panels[1].annotate("perfect outlines: −1", (0.05, 0.04), xycoords="axes fraction", fontsize=8)
    for place, (tool, colour) in enumerate(looks):
        counts = [int(row["found"].split()[0]) for row in found if row["tool"] == tool]
        bars = right.bar([4 * place + i for i in range(len(counts))], counts, color=colour)
        right.bar_label(bars, fontsize=8.5)
    n_lesions = int(found[0]["found"].split()[-1])
    right.set(title="lesions found", ylim=(0, n_lesions), ylabel=f"of {n_lesions} in 16 test scans")
    right.set_xticks([1, 5], ["lesionseg", "nnU-Net"])
    for axes in (*panels, right):
        axes.title.set_fontsize(10)
    _tidy(*panels, right)


def comparison(onto: Figure) -> None:
    """Draw each training of two tools on each set, 20 minutes on the same machine."""
    panels = onto.subplots(1, len(COMPARED))
    for axes, (title, table, teaches, column, label, top) in zip(panels, COMPARED, strict=True):
        for place, (tool, colour) in enumerate(((OURS, FOUND), (PEER, ACCENT))):
            wanted = f"{tool}, {'Intel' if table in FASTER else 'slower'} machine"
            rows = [r for r in read_rows(table) if r["tool"] == wanted]
            values = [float(r[column].split()[0]) for r in rows if r.get("teaches") in teaches]
            axes.plot(place + 0.1 * (np.arange(len(values)) - 1), values, "o", color=colour)
        axes.set(title=title, ylabel=label, xlim=(-0.5, 1.5), ylim=(-0.03 * top, top))
        axes.set_xticks([0, 1], ["lesionseg", "nnU-Net"])
        axes.title.set_fontsize(10)
    _tidy(*panels)


def minutes_curves(onto: Figure) -> None:
    """Draw what both tools find against the minutes of training, with the steps they made."""
    rows = read_rows(CURVES)
    present = [(name, title) for name, title in SETS if any(row["set"] == name for row in rows)]
    panels = onto.subplots(len(present), len(MEASURES), squeeze=False)
    for line, (name, title) in zip(panels, present, strict=True):
        of_set = [row for row in rows if row["set"] == name]
        for axes, (column, end, label) in zip(line, MEASURES, strict=True):
            for tool in TOOLS:
                of_tool = [row for row in of_set if row["tool"] == tool.key]
                _draw_minutes(axes, of_tool, column, tool, has_steps=axes is line[0])
            if end:
                top = of_set[0][end]
                label += f", of {top}"
                axes.set_ylim(0, 1.03 * int(top))
            else:
                axes.margins(y=0.3)
            axes.set_title(f"{title}\n{label}", fontsize=9)
            axes.set_xscale("log")
            ticks = sorted({_planned_minutes(row) for row in of_set})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.margins(x=0.25)
            axes.yaxis.get_major_locator().set_params(integer=bool(end))
            if name == present[-1][0]:
                axes.set_xlabel("minutes of one core")
    for tool in TOOLS:
        panels[0][-1].plot([], [], tool.style, marker="o", color=tool.colour, label=tool.name)
    panels[0][-1].legend(frameon=False, loc="lower right", fontsize=9)
    _tidy(*panels.flat)


def _draw_minutes(
    axes: Axes, rows: list[dict[str, str]], column: str, tool: Tool, *, has_steps: bool
) -> None:
    """Draw a dot per training, a line through the means and, if wanted, the mean steps."""
    by_minutes: dict[int, list[dict[str, str]]] = {}
    for row in rows:
        by_minutes.setdefault(_planned_minutes(row), []).append(row)
    minutes = sorted(by_minutes)
    means = [np.mean([float(row[column]) for row in by_minutes[at]]) for at in minutes]
    axes.plot(minutes, means, tool.style, color=tool.colour)
    for at, mean in zip(minutes, means, strict=True):
        values = [float(row[column]) for row in by_minutes[at]]
        axes.plot([at] * len(values), values, "o", color=tool.colour, markersize=5)
        if has_steps:
            steps = np.mean([float(row["steps"]) for row in by_minutes[at]])
            words = f"{steps:.0f} steps"
            axes.annotate(
                words,
                (at, mean),
                (0, tool.distance),
                textcoords="offset points",
                color=tool.colour,
                fontsize=7,
                ha="center",
            )


def _planned_minutes(row: dict[str, str]) -> int:
    """Return the minutes of a training, rounded to tens: a training ends with its last step."""
    return 10 * round(float(row["minutes"]) / 10)


def read_rows(name: str) -> list[dict[str, str]]:
    """Read a table of benchmarks/results."""
    with (ROWS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers() -> dict[str, object]:
    """Return the numbers that docs/focal.md quotes."""
    chances = np.array([1e-3, 1e-2, 0.1, 0.5])
    return {
        "loss at p_t 0.1 over loss at p_t 0.99, by γ": {
            f"{gamma:g}": _rounded(_hard_over_easy(gamma)) for gamma in GAMMAS
        },
        "share of the gradient: lesions, easy background, other background; α 0.5": {
            f"lesions {fraction:g}, γ {gamma:g}": [
                _rounded(x) for x in shares(fraction, gamma, 0.5)
            ]
            for fraction in FRACTIONS
            for gamma in GAMMAS
        },
        "probability taught where the chance of lesion is 0.001, 0.01, 0.1, 0.5": {
            f"α {alpha:g}, γ {gamma:g}": [_rounded(x) for x in minimiser(chances, gamma, alpha)]
            for gamma, alpha in (*((g, 0.5) for g in GAMMAS), *PAPER, (2.0, 0.75))
        },
    }


def _hard_over_easy(gamma: float) -> float:
    p = np.array([0.1, 0.99])
    hard, easy = loss_and_gradient(np.log(p / (1 - p)), True, gamma, None)[0]
    return float(hard / easy)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _tidy(*all_axes: object) -> None:
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)  # type: ignore[attr-defined]
        axes.grid(color=GRID, linewidth=0.8)  # type: ignore[attr-defined]
        axes.set_axisbelow(True)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
