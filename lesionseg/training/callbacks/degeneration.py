"""Signs that a focal loss teaches the wrong things, in plain language."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lesionseg.losses.gradient_balance import Parts

Kind = Literal["hard_background", "few_lesions", "collapse", "nothing_found"]

# Rows looked at together: one batch holds a few lesions or none, so that a single row says little;
# 20 of them are 100 steps in a short training, a tenth of the budget or 20 minutes in a long one.
STRETCH = 20
# Of the gradient. Where a sigmoid's bias has settled, its gradients of lesions and background
# cancel, so that all background together takes half; Dice beside it moves the balance (0.51 in the
# demo by default). Well above, the outliers alone decide. Simulated brain MRI with a tenth of its
# labels corrupted reached 0.31 under focal loss alone (benchmarks/options/trial_label_audit.py).
HARD_LIMIT = 0.65
# Of the gradient: a hundredth of the half that lesions take where things are in balance.
LESION_LIMIT = 0.01
# From the first to the last third of a stretch. Halving is far beyond what the choice of lesions
# does to the mean over thirds, which hold a dozen lesions or more.
COLLAPSE_RATIO = 0.5

# Highest probability in a lesion, mean over a stretch, under which no lesion would become a
# candidate (plan.CandidateRule.floor); asked once the warm-up is long over.
FOUND_FROM = 0.05
FOUND_AFTER = 0.25  # of the budget

SENTENCES: dict[Kind, str] = {
    "hard_background": (
        "The hardest 1 % of background took {hard:.0%} of the gradient over the last {n} logging "
        "steps (lesions {lesion:.0%}): the reference may miss lesions, or γ be too high. Look at "
        "label_audit.csv (audit=on), or lower γ where it is above 0 (and raise α less)."
    ),
    "few_lesions": (
        "Lesions took {lesion:.1%} of the gradient over the last {n} logging steps: α is too low "
        "for this γ. Raise α, or show more tiles with lesions (sampling.lesion_share)."
    ),
    "collapse": (
        "The prediction collapses to background: the highest probability in a lesion fell from "
        "{before:.2g} to {after:.2g} over the last {n} logging steps while the loss fell too. "
        "Raise α, lower the learning rate, or show more tiles with lesions."
    ),
    "nothing_found": (
        "After {share:.0%} of the budget no lesion would be predicted: the highest probability in "
        "a lesion was {after:.2g} on average over the last {n} logging steps. Give more minutes, "
        "show more tiles with lesions (sampling.lesion_share), raise α, or look at whether the "
        "lesions can be seen at this resolution (model.spacing_mm)."
    ),
}


@dataclass(frozen=True)
class BalanceRow:
    """One logging step of focal_balance.csv.

    `loss` is the mean of the whole training loss since the row before. The parts are sums over the
    batch, None where the loss has no focal term. `lesion_p`: mean over the batch's `n_lesions` of
    the highest probability in each, None without a lesion.
    """

    step: int
    loss: float | None
    parts: Parts | None
    gradient: Parts | None
    n_lesions: int
    lesion_p: float | None
    background_p: float | None


@dataclass(frozen=True)
class Degeneration:
    """One warning: at which step, of what kind, and what it says."""

    step: int
    kind: Kind
    sentence: str


def find_degenerations(rows: Sequence[BalanceRow], share: float = 0.0) -> tuple[Degeneration, ...]:
    """What the last `STRETCH` of the rows (in order of step) warn of; nothing for fewer rows.

    `share`: of the budget that is spent; a network is not expected to find anything early on.
    """
    rows = rows[-STRETCH:]
    if len(rows) < STRETCH:
        return ()
    signs: tuple[Callable[[Sequence[BalanceRow]], Degeneration | None], ...]
    signs = (_hard_background, _few_lesions, _collapse)
    signs_shown = [*(sign(rows) for sign in signs), _nothing_found(rows, share)]
    return tuple(each for each in signs_shown if each is not None)


def _hard_background(rows: Sequence[BalanceRow]) -> Degeneration | None:
    shares = pooled_shares(rows)
    if shares is None or shares.hard <= HARD_LIMIT:
        return None
    return _say("hard_background", rows, hard=shares.hard, lesion=shares.lesion)


def _few_lesions(rows: Sequence[BalanceRow]) -> Degeneration | None:
    shares = pooled_shares(rows)
    if shares is None or shares.lesion >= LESION_LIMIT or not any(row.n_lesions for row in rows):
        return None
    return _say("few_lesions", rows, lesion=shares.lesion)


def _collapse(rows: Sequence[BalanceRow]) -> Degeneration | None:
    third = len(rows) // 3
    first, last = rows[:third], rows[-third:]
    before, after = mean_lesion_p(first), mean_lesion_p(last)
    loss_before, loss_after = _mean_loss(first), _mean_loss(last)
    if before is None or after is None or loss_before is None or loss_after is None:
        return None
    if after > COLLAPSE_RATIO * before or loss_after >= loss_before:
        return None
    return _say("collapse", rows, before=before, after=after)


def _nothing_found(rows: Sequence[BalanceRow], share: float) -> Degeneration | None:
    after = mean_lesion_p(rows)
    if share < FOUND_AFTER or after is None or after >= FOUND_FROM:
        return None
    return _say("nothing_found", rows, after=after, share=share)


def pooled_shares(rows: Sequence[BalanceRow]) -> Parts | None:
    """Shares of the gradient over several rows together, as gradients add up over steps."""
    gradients = [row.gradient for row in rows if row.gradient is not None]
    return sum(gradients, Parts(0.0, 0.0, 0.0)).shares()


def mean_lesion_p(rows: Sequence[BalanceRow]) -> float | None:
    """The highest probability in a lesion, mean over all lesions of the rows; None without any."""
    known = [(row.n_lesions, row.lesion_p) for row in rows if row.lesion_p is not None]
    n = sum(count for count, _ in known)
    return sum(count * p for count, p in known) / n if n else None


def _mean_loss(rows: Sequence[BalanceRow]) -> float | None:
    losses = [row.loss for row in rows if row.loss is not None]
    return sum(losses) / len(losses) if losses else None


def _say(kind: Kind, rows: Sequence[BalanceRow], **values: float) -> Degeneration:
    return Degeneration(rows[-1].step, kind, SENTENCES[kind].format(n=len(rows), **values))
