"""Equal label names in prediction and dataset: renumbered values, warnings of unknown labels.

The number of a label often depends on the dataset. In a table of boxes, labels are numbered in the
order of the alphabet: "nodule" is 2 next to "mass", and 1 if a table contains only nodules.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, count

import pandas as pd

from lesionseg.core import Labels, Prediction
from lesionseg.errors import DatasetError, join_names
from lesionseg.evaluation.matched_case import MatchedCase

_log = logging.getLogger(__name__)


class LabelNumbers:
    """Renumbers predicted labels, so that equal names have the number of the reference's dataset.

    Predictions and references are compared by label values, which depend on the dataset that a
    model was trained on. Names are not compared in these cases:

    - The predictions or the references have no label names. These are predictions of most other
      programs, and references in a folder of masks without metadata. nnU-Net's names are in the
      `dataset.json` next to its outputs.
    - All candidates get one label, because the labels are regions or are merged.
    - Two predicted labels have the same name, as in some models of version 1.0.0.

    Args:
        labels: The labels of the dataset. None for a folder of masks without metadata.
    """

    def __init__(self, labels: Labels | None) -> None:
        self._are_merged = labels is not None and bool(labels.merged)
        becomes_one_label = self._are_merged or (labels is not None and bool(labels.regions))
        self._ignored_value = None if labels is None else labels.ignore
        self._names: Mapping[int, str] = {}
        if labels is not None and not becomes_one_label:
            self._names = labels.value_names
        # upper and lower case may differ, but an equal name has priority
        self._value_of = {name.casefold(): value for value, name in self._names.items()}
        self._value_of.update({name: value for value, name in self._names.items()})

    def apply(self, prediction: Prediction) -> Prediction:
        """Return the prediction with the label values of the dataset.

        - If the labels of the dataset are merged, all candidates get label 1.
        - If prediction and dataset each have a single named label, the predicted one gets the
          dataset's value, even if the names differ.
        - If names are compared, each label gets the dataset's value of the same name. Upper and
          lower case may differ. A label that the dataset does not have gets an unused value for
          this and later predictions, and a warning names the label once.
        - Otherwise the labels keep their values.

        Raises:
            DatasetError: If prediction and dataset have several labels each, but no name in common.
        """
        if self._are_merged:
            return prediction.merge_labels()
        labels = prediction.labels
        are_distinct = len(set(labels.values())) == len(labels)
        if not labels or not self._names or not are_distinct:
            return prediction
        if len(labels) == len(self._names) == 1:
            return prediction.with_labels(dict(zip(labels, self._names, strict=True)))
        unknown = [name for name in labels.values() if self._key(name) not in self._value_of]
        if len(unknown) == len(labels) > 1 and len(self._names) > 1:
            raise DatasetError(
                f"The predicted labels ({join_names(unknown)}) and those of the reference "
                f"({self._known}) have no name in common. Give equal labels equal names in the "
                "reference, or set merge_labels=true to score all of them as one label."
            )
        if unknown:
            self._add_unknown_labels(unknown)
        number_of = {value: self._value_of[self._key(name)] for value, name in labels.items()}
        return prediction.with_labels(number_of)

    @property
    def _known(self) -> str:
        """The names of the dataset's labels as one text, for messages."""
        return join_names(self._names.values())

    def _key(self, name: str) -> str:
        """Return the key of `_value_of` for a name, which ignores upper and lower case.

        The key is the name itself if `_value_of` has this key, otherwise the name in lower case.
        """
        return name if name in self._value_of else name.casefold()

    def _add_unknown_labels(self, unknown: Sequence[str]) -> None:
        """Assign unused label values to names that the dataset does not have, with a warning."""
        _log.warning(
            "The reference does not have these predicted labels. Their candidates match none of "
            "its labels (%s): %s. Use equal names for equal labels, or set merge_labels=true to "
            "score all labels as one.",
            self._known,
            join_names(unknown),
        )
        for name in unknown:
            taken = {*self._value_of.values(), self._ignored_value}
            self._value_of[name] = next(number for number in count(1) if number not in taken)


def add_predicted_names(
    names: Mapping[int, str], matches: Iterable[MatchedCase]
) -> Mapping[int, str]:
    """Add the names of predicted labels that the dataset does not have, for tables and reports.

    Args:
        names: Names of the dataset's labels by value. Empty for references without label names.
            The result is then empty too, and labels are named by their values.
        matches: The matched cases, whose predictions state the names of the model's labels.

    Returns:
        The names of the dataset's labels by value, then those of candidates with other labels.
    """
    if not names:
        return names
    all_names = dict(names)
    for match in matches:
        labels = match.prediction.labels
        for candidate in match.prediction.candidates:
            if candidate.label in labels:
                all_names.setdefault(candidate.label, labels[candidate.label])
    return all_names


def warn_of_labels(cases: Sequence[MatchedCase], names: Mapping[int, str]) -> None:
    """Warn of predicted label values that the reference lacks, and of probably exchanged labels.

    Two labels are probably exchanged if the mean Dice of both labels is below 0.5, but would be
    above 0.5 for both if their predicted values were swapped.

    Args:
        cases: The matched cases.
        names: The names of the dataset's labels by value. If it is empty (references without label
            names), the known label values are those of the lesions.
    """
    reference_labels = {*names} or {
        label for case in cases for label in case.match.lesions.labels.tolist()
    }
    predicted_labels = {
        candidate.label
        for case in cases
        for candidate in case.prediction.candidates
        if not (names and case.prediction.labels)  # `LabelNumbers` warns of names
    }
    if reference_labels and predicted_labels - reference_labels:
        _log.warning(
            "The predicted values %s are not among the labels of the reference, %s, and have rows "
            "of their own in labels.csv. Correct them, or set merge_labels=true to score all "
            "labels as one.",
            sorted(predicted_labels - reference_labels),
            dict(names) or sorted(reference_labels),
        )

    def dice(predicted: int, drawn: int) -> float:
        """Return the mean Dice of a predicted label and a label of the reference.

        The mean is over the cases that have one of the two labels.
        """
        # `compute_dice` returns None for a case with neither label; `mean` leaves it out, as NaN
        dice_of_cases = [
            match.compute_dice(match.lesions.labels == drawn, match.candidates.labels == predicted)
            for match in (case.match for case in cases)
        ]
        return float(pd.Series(dice_of_cases, dtype=float).mean())

    poor = [label for label in names if dice(label, label) < 0.5]  # other labels are right
    for a, b in combinations(poor, 2):
        if min(dice(a, b), dice(b, a)) > 0.5:
            _log.warning(
                "The labels %s and %s are probably exchanged: if they were the other way round, "
                "both would have a Dice above 0.5.",
                names[a],
                names[b],
            )
