"""Reader's review of false positives: answers in adjudicate.csv, scores with added lesions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lesionseg.errors import ContentError
from lesionseg.evaluation.intervals import Estimate
from lesionseg.evaluation.summary import RATIOS
from lesionseg.evaluation.tables import Tables

LESION = "lesion"
NO_LESION_HERE = "no_lesion"
UNSURE = "unsure"
ADJUDICATED = "adjudicated"  # the subset of the rows
WORDS = (LESION, NO_LESION_HERE, UNSURE)
ADJUDICATED_RATIOS = ("lesion_recall", "lesion_precision", "false_positives_per_case")


Key = tuple[str, int, tuple[float, ...]]  # case, candidate and box


class ReaderAnswer(NamedTuple):
    """The answer of a reader to the question if a false positive is a lesion.

    Attributes:
        key: Case, candidate id and box of the candidate when the reader answered. If the candidate
            has another box now, the answer is stale.
        word: The answer, one of `WORDS`.
    """

    key: Key
    word: str


def candidate_key(row: Mapping[Any, Any]) -> Key:
    """Return the key that connects a row of candidates.csv with a row of adjudicate.csv.

    The key consists of the case, the candidate id and the box in voxels: start z, y, x, then stop
    z, y, x. A spreadsheet may write 3 as 3.0, so numbers are parsed, and those of the box are
    rounded to 0.01. Missing or empty cells of the box are left out, for example those of z in 2-D.

    Raises:
        KeyError: If the row has no column case or candidate.
        ValueError: If a cell is not a number.
        OverflowError: If the candidate is infinite.
    """
    cells = [row.get(f"{end}_{axis}_vox") for end in ("start", "stop") for axis in "zyx"]
    # an empty cell is None or "", and in a pandas table NaN, which does not equal itself
    box = [round(float(cell), 2) for cell in cells if cell not in (None, "") and cell == cell]
    return str(row["case"]), int(float(row["candidate"])), tuple(box)


def read_answers(rows: Sequence[Mapping[str, str]], where: str) -> list[ReaderAnswer]:
    """Convert the rows of adjudicate.csv to answers. Rows with an empty answer are left out.

    Upper case, spaces and hyphens in an answer do not matter: "No lesion" is `no_lesion`.

    Args:
        rows: The cells of each row of the file by column.
        where: The name of the file, for error messages.

    Raises:
        ContentError: If an answer is unknown, or if the key of its row is missing or not a number.
    """
    answers = []
    for line, row in enumerate(rows, 2):  # line 1 is the header
        cell = (row.get("answer") or "").strip()
        if not cell:
            continue
        word = cell.lower().replace(" ", "_").replace("-", "_")
        if word not in WORDS:
            raise ContentError(
                f"{where}, line {line}: the answer {cell!r} is not known. Write {LESION}, "
                f"{NO_LESION_HERE}, {UNSURE} or nothing."
            )
        try:
            answers.append(ReaderAnswer(candidate_key(row), word))
        except (KeyError, ValueError, OverflowError) as error:
            raise ContentError(
                f"{where}, line {line}: the case, the candidate or its box is missing or is not a "
                f"number ({error}). Copy these cells from a new adjudicate.csv of the report."
            ) from error
    return answers


def adjudicate(tables: Tables, answers: Sequence[ReaderAnswer]) -> list[Estimate]:
    """Compute recall, precision and false positives per case after a reader's review.

    A false positive with the answer `lesion` counts as a lesion that the model found. Lesions that
    both the reference and the model miss remain unknown, so the adjudicated recall is too high.

    Args:
        tables: The evaluated cases.
        answers: The answers of the reader to false positives.

    Returns:
        Rows of the subset `ADJUDICATED`. The rows `n_answer_…` count the candidates with each
        answer. `n_open` counts the false positives without an answer. `n_stale` counts the answers
        about candidates that are no longer false positives or have another box now. Then come
        `n_lesions`, `n_false_positive` and the `ADJUDICATED_RATIOS`.

    Raises:
        ContentError: If two answers to the same false positive differ.
    """
    false_positive_keys = {candidate_key(row) for row in tables.false_positives.to_dict("records")}
    valid = [answer for answer in answers if answer.key in false_positive_keys]
    word_of: dict[Key, str] = {}
    for key, word in valid:
        first = word_of.setdefault(key, word)
        if first != word:
            case, candidate, _ = key
            raise ContentError(
                f"adjudication: candidate {candidate} of {case} has two answers, "
                f"{first} and {word}. Keep one of them."
            )
    # number of confirmed false positives by case
    confirmed = Counter(case for (case, *_), word in word_of.items() if word == LESION)
    n_by_word = Counter(word_of.values())
    numbers = {
        "n_answer_lesion": n_by_word[LESION],
        "n_answer_no_lesion": n_by_word[NO_LESION_HERE],
        "n_answer_unsure": n_by_word[UNSURE],
        "n_open": len(false_positive_keys) - len(word_of),
        "n_stale": len(answers) - len(valid),
    }
    counts = [Estimate(number, name=name) for name, number in numbers.items()]
    return [
        replace(row, subset=ADJUDICATED) for row in (*counts, *_count_confirmed(tables, confirmed))
    ]


def _count_confirmed(tables: Tables, confirmed: Mapping[str, int]) -> list[Estimate]:
    """Compute `ADJUDICATED_RATIOS` and their counts after adding the confirmed lesions.

    Each false positive that a reader confirmed becomes a lesion, a found lesion and a true
    positive, and is no longer a false positive.

    Args:
        tables: The evaluated cases.
        confirmed: Number of confirmed false positives of each case that has one.
    """
    # all arrays are sums by patient `[groups]`, which the intervals need
    added = tables.add_up("cases", tables.cases["case"].map(confirmed).fillna(0))
    sums = {name: tables.sums[name] + added for name in ("true", "found", "lesions")}
    sums["false"] = tables.sums["false"] - added
    sums["cases"] = tables.sums["cases"]
    return [
        Estimate(int(sums["lesions"].sum()), name="n_lesions"),
        Estimate(int(sums["false"].sum()), name="n_false_positive"),
        *(RATIOS[name].estimate(name, sums) for name in ADJUDICATED_RATIOS),
    ]
