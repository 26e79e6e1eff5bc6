"""Warning that a scan is unlike the training scans: statistics, accepted ranges, negatives.

The statistics are spacing and extent of the file's grid and, for each channel, percentiles of the
normalised intensities and the mean difference of neighbouring voxels along each axis. The
difference shows interpolated thick slices, blur and noise. The bundle contains the median of each
statistic over the training scans (for grids, over validation scans, too) and the largest accepted
distance from it: the largest of 5 scaled MADs, 1.2 times the distance of the farthest training
scan, and a fixed distance (log 1.5 for logarithms, 0.5 for normalised intensities).

A photographic negative can have all of these statistics in range, because radiographs differ in
brightness and contrast. It is found by three features of a channel that are multiplied by -1 in a
negative: the skew of its intensities, the brightness of its border, and the correlation of its
coarse picture with the mean picture of the training scans. Their sum is weighted by mean / variance
over the training scans.

A scan beyond an accepted distance is still predicted, with a sentence that describes the
difference. Only a scan with a channel without contrast is not predicted: its result has no lesions.
A channel that has no contrast in many training scans is an exception. Without training scans to
compare with, as for nnU-Net models, all channels must be without contrast, because one of them may
be empty in most scans, such as a mask of earlier lesions. Mirrored scans, and swapped channels of
similar contrast, are not detected.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat

from lesionseg.core import Geometry, InputCheckResult, Volume, describe_sides
from lesionseg.core.arrays import Flags, Numbers
from lesionseg.data.cache import CachedCase
from lesionseg.errors import DatasetError, GeometryError
from lesionseg.plan.fingerprint import Fingerprint
from lesionseg.plan.plan import Plan

Statistics = Mapping[str, float]

MIN_SCANS = 5  # a check needs at least this many training scans
N_SCANS = 64  # maximum number of training scans that are used
N_MAD = 5.0
MAD_TO_STD = 1.4826
BEYOND_FARTHEST = 1.2
PERCENTILES = (5, 25, 50, 75, 95, 99)
BLANK_SHARE = 0.999  # a channel is blank if at least this share of its voxels are equal
EQUAL = 1e-5  # values with a smaller relative difference count as equal
MAX_RATIO = 100.0  # largest accepted ratio of the file's spacing and the plan's
MAX_EXTENT_MM = 5000.0  # largest accepted extent of a volume
MAX_PLACES = 48  # number of places along each axis that are sampled
COARSE = {2: 6, 3: 4}  # blocks of a coarse picture along each axis, by the number of axes
N_STD = 4.0  # the lowest accepted similarity is this many standard deviations below its mean
FEATURE_VARIANCE = 0.01  # added to the variance of a feature, which is unreliable for few scans
_ACCEPTS_ALL = -1e6  # lower than the similarity of any scan
_MIN_SCALE = 1e-6  # weights are undefined if the features are smaller
BORDER = 12  # the border is 1/12 of each axis at both ends
UNLIKE = "This scan looks unlike the training scans, so do not rely on the result"
MIN_LOG = np.log(1.5)  # smallest tolerance of a logarithm
_MIN_DIFFERENCE = 1e-3  # added before the logarithm, so that equal neighbours do not give -inf
MIN_INTENSITY = 0.5  # smallest tolerance of a normalised intensity


@dataclass(frozen=True, eq=False)
class PolarityFeatures:
    """Features of a channel that are multiplied by -1 if dark and bright are exchanged.

    `skew` is (p99 + p1 - 2 p50) / (p99 - p1) of the intensities. `border` is tanh(b), where b is
    the mean of the border in standard deviations from the channel's mean. `picture` is the vector
    of `coarse_picture`.
    """

    skew: float
    border: float
    picture: Numbers

    def values(self, mean_picture: Numbers) -> Numbers:
        """Return the three numbers `[3]` from which the similarity to training scans is computed.

        The numbers are `skew`, `border` and the correlation of `picture` with the mean picture of
        the training scans. The correlation is 0 if the two pictures have different lengths.
        """
        has_same_length = mean_picture.shape == self.picture.shape
        # both pictures have mean 0 and length 1, so their scalar product is the correlation
        correlation = float(mean_picture @ self.picture) if has_same_length else 0.0
        return np.array([self.skew, self.border, correlation])


class Polarity(BaseModel, frozen=True):
    """The distribution of dark and bright in one channel of the training scans.

    `picture` is their mean coarse picture. The similarity of a scan is the sum of its three
    features, weighted by `weights`. Its mean is 1 over the training scans, and -1 over their
    negatives. `lowest` is the lowest similarity of a training scan with the remaining ones. A scan
    with a similarity below `limit` is unlike the training scans.
    """

    picture: tuple[FiniteFloat, ...]
    weights: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    lowest: FiniteFloat
    limit: Annotated[FiniteFloat, Field(le=0)]

    def similarity(self, features: PolarityFeatures) -> float:
        """Return the similarity of a scan's channel to the training scans, to find negatives.

        The features are compared with `picture`, the mean picture of the training scans. The
        similarity is about 1 for a scan like the training scans, because `weights` are scaled so
        that the mean of the training scans is 1. It is about -1 for a photographic negative, which
        reverses the sign of each feature.

        Args:
            features: The features of the scan's channel.
        """
        return float(features.values(np.asarray(self.picture)) @ np.asarray(self.weights))


class InputCheck(BaseModel, frozen=True):
    """The medians of the training scans, the accepted distances from them, and their polarities.

    The keys of `medians` and `tolerances` are names of statistics. The keys of `polarities` are
    channel names. `sparse_channels` are the channels that have no contrast in at least half of the
    training scans, such as a mask of earlier lesions. They may have none in new scans, too.
    """

    medians: dict[str, FiniteFloat]
    tolerances: dict[str, Annotated[FiniteFloat, Field(gt=0)]]
    polarities: dict[str, Polarity] = {}
    sparse_channels: tuple[str, ...] = ()

    def compare(
        self, numbers: Statistics, features: Mapping[str, PolarityFeatures]
    ) -> tuple[float | None, str]:
        """Compare a scan with the training scans, to warn if the scan is unlike them.

        Statistics and channels that the training scans do not have are ignored. Only one difference
        is described. A channel that looks like a photographic negative has priority, because a
        negative also changes several statistics.

        Args:
            numbers: Statistics of the scan by name (`grid_statistics`, `image_statistics`).
            features: Features of the scan's channels by channel name (`polarity_features`).

        Returns:
            A distance and a sentence. The distance is the largest one from the training scans, in
            units of the accepted distance, or None if nothing could be compared. The sentence
            describes the difference if the distance is above 1; otherwise it is "".
        """
        known_names = self.medians.keys() & self.tolerances.keys()
        distances = {
            name: abs(value - self.medians[name]) / self.tolerances[name]
            for name, value in numbers.items()
            if name in known_names
        }
        similarities = {
            channel: self.polarities[channel].similarity(of_channel)
            for channel, of_channel in features.items()
            if channel in self.polarities
        }
        # a similarity s as a distance: 0 if s is 1, the mean of the training scans; 1 at the limit
        polarity_distances = {
            c: (1 - s) / (1 - self.polarities[c].limit) for c, s in similarities.items()
        }
        score = max([*distances.values(), *polarity_distances.values()], default=None)
        if score is None or score <= 1:
            return score, ""
        worst_channel = max(polarity_distances, key=polarity_distances.__getitem__, default="")
        if polarity_distances.get(worst_channel, 0) > 1:
            return score, (
                f"{UNLIKE}: {worst_channel} looks like a photographic negative, or is upside "
                f"down (similarity of dark and bright {similarities[worst_channel]:.2f}, training: "
                f"from {self.polarities[worst_channel].lowest:.2f}, on average 1)."
            )
        worst_name = max(distances, key=distances.__getitem__)
        return score, self._describe(worst_name, numbers[worst_name])

    def _describe(self, name: str, value: float) -> str:
        """Compose the warning about a statistic that is beyond the accepted distance.

        Logarithms are converted back, so that the sentence shows mm or intensities.

        Args:
            name: Name of the statistic; it begins with "log " if `value` is a logarithm.
            value: The statistic of the scan.
        """
        median = self.medians[name]
        tolerance = self.tolerances[name]
        value_and_range = [value, median - tolerance, median + tolerance]
        value, low, high = (
            np.exp(value_and_range).tolist() if name.startswith("log ") else value_and_range
        )
        return (
            f"{UNLIKE}: {name.removeprefix('log ')} is {value:.3g} "
            f"(accepted: {low:.3g} to {high:.3g})."
        )


def training_ranges(
    cases: Sequence[CachedCase], plan: Plan, fingerprint: Fingerprint
) -> InputCheck | None:
    """Make the input check from the training cases, to be stored in the bundle.

    The statistics of images come from at most 64 evenly spaced cases with all channels. The
    statistics of grids come from all scans of the fingerprint. A channel without contrast in at
    least half of these cases is sparse: a new scan without contrast in it causes no warning of an
    empty channel. Return None if fewer than five cases have all channels.
    """
    complete = [case for case in cases if not case.missing]
    sampled = complete[:: max(1, math.ceil(len(complete) / N_SCANS))]
    grids = zip(fingerprint.shapes, fingerprint.spacings_mm, strict=True)
    check = make_input_check(
        [grid_statistics(shape, spacing_mm) for shape, spacing_mm in grids],
        [image_statistics(case.image, plan.channel_names) for case in sampled],
        [polarity_features(case.image, plan.channel_names) for case in sampled],
    )
    if check is None:
        return None
    sparse = tuple(
        name
        for channel, name in enumerate(plan.channel_names)
        # blank in at least half of the sampled cases
        if 2 * sum(_is_blank(case.image[channel], valid=None) for case in sampled) >= len(sampled)
    )
    return check.model_copy(update={"sparse_channels": sparse})


def make_input_check(
    grids: Sequence[Statistics],
    images: Sequence[Statistics],
    features: Sequence[Mapping[str, PolarityFeatures]],
) -> InputCheck | None:
    """Make the input check from statistics of the training scans.

    Return None if there are fewer than five grids or images. With fewer than five features, the
    check has no polarities and cannot find negatives.

    The accepted distance of a statistic from its median is the largest of a fixed minimum, 5 scaled
    MADs (median absolute deviations) and 1.2 times the largest distance of a training scan.

    Args:
        grids: `grid_statistics` of the training scans' files.
        images: `image_statistics` of some of these scans after preparation, in any order.
        features: `polarity_features` of some of these scans after preparation, in any order.
    """
    if min(len(grids), len(images)) < MIN_SCANS:
        return None
    medians = {}
    tolerances = {}
    for rows in (grids, images):
        for name in rows[0]:  # all scans have the same statistics
            values = np.array([row[name] for row in rows])
            median = float(np.median(values))
            distances = np.abs(values - median)
            by_spread = N_MAD * MAD_TO_STD * float(np.median(distances))
            by_farthest = BEYOND_FARTHEST * float(distances.max())
            minimum = MIN_LOG if name.startswith("log ") else MIN_INTENSITY
            medians[name] = median
            tolerances[name] = max(minimum, by_spread, by_farthest)
    polarities = {}
    if len(features) >= MIN_SCANS:
        fitted = {name: _fit_polarity([scan[name] for scan in features]) for name in features[0]}
        polarities = {name: fit for name, fit in fitted.items() if fit is not None}
    return InputCheck(medians=medians, tolerances=tolerances, polarities=polarities)


def _fit_polarity(scans: Sequence[PolarityFeatures]) -> Polarity | None:
    """Compute the polarity of one channel, with which negatives of new scans are found.

    The similarity of each training scan is computed without the scan itself (leave-one-out),
    because a new scan does not contribute to the mean picture and the weights either.

    Args:
        scans: The channel's features, one entry per training scan.

    Returns:
        The polarity. None if the features of a scan and of its negative do not differ.
    """
    # each scan is compared with the mean picture of the other scans (a sum of equal direction)
    total = np.sum([scan.picture for scan in scans], axis=0)
    features = np.stack([scan.values(_unit_length(total - scan.picture)) for scan in scans])
    weights = _feature_weights(features)
    if weights is None:
        return None
    # each scan is weighted with the weights that the other scans give
    similarities = [
        float(features_of_scan @ weights_of_others)
        for i, features_of_scan in enumerate(features)
        if (weights_of_others := _feature_weights(np.delete(features, i, axis=0))) is not None
    ]
    return Polarity(
        picture=tuple(_unit_length(total).tolist()),
        weights=tuple(weights.tolist()),
        lowest=min(similarities, default=0.0),  # 0 if each scan lacks weights of the other scans
        limit=_lowest_accepted(similarities),
    )


def _lowest_accepted(similarities: Sequence[float]) -> float:
    """Return the similarity below which a new scan counts as a negative.

    This similarity is the mean minus `N_STD` standard deviations of the training scans'
    similarities, but at most 0, because negatives have a similarity below 0. With fewer than two
    similarities, the returned number accepts every scan.
    """
    if len(similarities) < 2:
        return _ACCEPTS_ALL
    lowest = float(np.mean(similarities)) - N_STD * float(np.std(similarities, ddof=1))
    return max(min(lowest, 0.0), _ACCEPTS_ALL)


def _feature_weights(rows: Numbers) -> Numbers | None:
    """Compute the weights `[3]` of the features, with which their weighted sum is 1 on average.

    A weight is proportional to mean / variance of its feature, because a feature with a large mean
    and a small variance separates scans from negatives best.

    Args:
        rows: The three features of each scan `[n, 3]`.

    Returns:
        The weights. None if the mean features are nearly 0, because then no weights exist.
    """
    means = rows.mean(axis=0)
    weights = means / (rows.var(axis=0, ddof=1) + FEATURE_VARIANCE)
    scale = float(means @ weights)
    # after division by `scale`, the weighted sum of the mean features is 1
    return np.asarray(weights / scale) if scale > _MIN_SCALE else None


def _unit_length(vectors: Numbers) -> Numbers:
    """Scale vectors `[..., n]` along the last axis to length 1. Vectors of zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def grid_statistics(shape: Sequence[int], spacing_mm: Sequence[float]) -> dict[str, float]:
    """Compute the statistics of a file's grid: logarithms of spacing and extent along each axis.

    Args:
        shape: Number of voxels along each axis, in the canonical order of axes.
        spacing_mm: Spacing along each axis in mm, in the same order.

    Returns:
        The logarithms by names that a warning can show.
    """
    numbers = {}
    for axis, n, mm in zip(_axis_names(len(shape)), shape, spacing_mm, strict=True):
        numbers[f"log spacing along {axis} in mm"] = float(np.log(mm))
        numbers[f"log extent along {axis} in mm"] = float(np.log(n * mm))
    return numbers


def image_statistics(
    channels: Iterable[NDArray[Any]], channel_names: Sequence[str]
) -> dict[str, float]:
    """Compute the statistics of a prepared image, from at most 48 evenly spaced voxels per axis.

    For each channel, they are percentiles of the intensities, and for each axis the logarithm of
    the mean absolute difference of neighbouring voxels, which shows blur and noise.

    Args:
        channels: Normalised arrays on the plan's grid.
        channel_names: Names of the channels.

    Returns:
        The statistics by names that a warning can show.
    """
    numbers = {}
    for name, channel in zip(channel_names, channels, strict=True):
        sample = _sample_channel(channel)
        for q, value in zip(PERCENTILES, np.percentile(sample, PERCENTILES), strict=True):
            numbers[f"the {q} % percentile of {name}"] = float(value)
        for axis, axis_name in enumerate(_axis_names(channel.ndim)):
            log_difference = np.log(_difference_of_neighbours(channel, axis) + _MIN_DIFFERENCE)
            key = f"log difference of neighbours along {axis_name} in {name}"
            numbers[key] = float(log_difference)
    return numbers


def _difference_of_neighbours(channel: NDArray[Any], axis: int) -> float:
    """Compute the mean absolute difference of neighbouring voxels along an axis.

    At most 48 evenly spaced pairs per axis are sampled. The result is 0 if the axis has one voxel.
    """
    steps = _sampling_steps(channel.shape)
    n = channel.shape[axis]
    subsample = tuple(slice(None, None, step) for a, step in enumerate(steps) if a != axis)
    planes = np.moveaxis(channel, axis, 0)
    # first plane of each pair; if there is only one plane, it is compared with itself
    first = np.arange(0, max(n - 1, 1), steps[axis])
    first_planes = np.asarray(planes[first][(slice(None), *subsample)], np.float32)
    next_planes = np.asarray(
        planes[np.minimum(first + 1, n - 1)][(slice(None), *subsample)], np.float32
    )
    return float(np.abs(next_planes - first_planes).mean())


def polarity_features(
    channels: Iterable[NDArray[Any]], channel_names: Sequence[str]
) -> dict[str, PolarityFeatures]:
    """Compute the features that tell a channel of a prepared image from its photographic negative.

    Args:
        channels: Normalised arrays on the plan's grid. At most 48 evenly spaced voxels per axis are
            sampled.
        channel_names: Names of the channels.

    Returns:
        The features by channel name.
    """
    features = {}
    for name, channel in zip(channel_names, channels, strict=True):
        sample = _sample_channel(channel).astype(float)
        low, middle, high = np.percentile(sample, (1, 50, 99))
        width = max(high - low, _MIN_SCALE)
        features[name] = PolarityFeatures(
            skew=float((high + low - 2 * middle) / width),
            border=float(np.tanh(_border_brightness(sample))),
            picture=coarse_picture(sample),
        )
    return features


def _border_brightness(sample: Numbers) -> float:
    """Compute how much brighter the image border is than the image, in standard deviations.

    The border is the outer 1/12 at both ends of each axis. The result is (mean of the border − mean
    of all voxels) / standard deviation of all voxels, or 0 if all axes are too short for a border.
    """
    inside_border = []
    for n in sample.shape:
        width = max(1, n // BORDER)
        # an axis of one or two voxels has no inner part, so it has no border
        inside_border.append(slice(width, n - width) if n > 2 * width else slice(None))
    inner = sample[tuple(inside_border)]
    n_border = sample.size - inner.size
    if n_border == 0:
        return 0.0
    border_mean = (sample.sum() - inner.sum()) / n_border
    return float((border_mean - sample.mean()) / max(sample.std(), _MIN_SCALE))


def coarse_picture(channel: NDArray[Any]) -> Numbers:
    """Compute a coarse picture of a channel: its means over 6 × 6 blocks (3-D: 4 × 4 × 4).

    The means are shifted and scaled to a vector of mean 0 and length 1, so that the scalar product
    of two pictures is their correlation. If dark and bright are exchanged, the vector is multiplied
    by -1. A channel of equal voxels gives a vector of zeros. At most 48 evenly spaced voxels per
    axis are sampled.
    """
    # average over the blocks of one axis after the other
    means = _sample_channel(channel).astype(float)
    for axis, n in enumerate(means.shape):
        blocks = []
        for low, high in pairwise(np.linspace(0, n, COARSE[means.ndim] + 1)):
            first = int(low)
            stop = max(math.ceil(high), first + 1)  # on a short axis, blocks share voxels
            blocks.append(np.take(means, range(first, stop), axis).mean(axis))
        means = np.stack(blocks, axis)
    return _unit_length((means - means.mean()).reshape(-1))


def _sampling_steps(shape: Sequence[int]) -> list[int]:
    """Return the slice step along each axis with which at most 48 voxels per axis are sampled."""
    return [max(1, -(-n // MAX_PLACES)) for n in shape]  # -(-a // b) rounds a / b up


def _sample_channel(channel: NDArray[Any]) -> NDArray[np.float32]:
    """Subsample a channel to at most 48 evenly spaced voxels per axis, to save time."""
    subsample = tuple(slice(None, None, step) for step in _sampling_steps(channel.shape))
    return np.asarray(channel[subsample], np.float32)


def _axis_names(dims: int) -> tuple[str, ...]:
    """Return the names of the axes in messages.

    In 3-D, they are the anatomical directions of the canonical order: S(uperior), A(nterior),
    R(ight). In 2-D, they are the columns and the rows of a picture.
    """
    return ("S", "A", "R") if dims == 3 else ("the columns", "the rows")


def check_missing(plan: Plan, missing: Sequence[int]) -> None:
    """Check that the network can predict a scan without its missing channels.

    One channel may be missing if the network was trained for this (`Plan.may_lack`).

    Args:
        plan: Plan of the network.
        missing: Indices of the missing channels.

    Raises:
        DatasetError: If more channels are missing than the plan allows.
    """
    n_allowed = 1 if plan.may_lack else 0
    if len(missing) > n_allowed:
        names = ", ".join(plan.channel_names[c] for c in missing)
        advice = "This model needs all channels. Add the file, or train with data.channel_dropout."
        if plan.may_lack:
            advice = "This model can predict without one channel, but not more. Add the files."
        raise DatasetError(f"The scan has no {names}. {advice}")


def compare_scan(
    check: InputCheck | None,
    image: NDArray[Any],
    file: Geometry,
    plan: Plan,
    missing: Sequence[int],
    blank: Sequence[str] = (),
) -> InputCheckResult:
    """Compare a scan with the training scans, before the network predicts it.

    - A channel has no contrast if `blank` contains its name, or if its prepared voxels are all
      equal. Sparse channels of `check` are ignored, because they often have none.
    - With `check`, one channel without contrast is enough to skip the network. The result then
      names the channel in `InputCheckResult.blank`, and nothing is compared.
    - Without `check`, the network is skipped only if no channel has contrast, because it is unknown
      whether a channel is often empty in training scans. `InputCheckResult.empty` names the
      channels without contrast if the network is not skipped.
    - Missing channels are not compared, but the warning names them.

    Args:
        check: Ranges of the training scans. None if they are unknown, as for nnU-Net models.
        image: The prepared image `[C, *plan]`.
        file: The grid of the scan's file.
        plan: Plan of the network.
        missing: Indices of the missing channels.
        blank: Names of the channels without contrast in the file (`channels_without_contrast`).

    Returns:
        The largest distance from the training scans and the warning.
    """
    channels_by_name = {
        plan.channel_names[c]: image[c] for c in range(len(image)) if c not in missing
    }
    missing_names = tuple(plan.channel_names[c] for c in missing)
    sparse = () if check is None else check.sparse_channels
    empty = tuple(
        name
        for name, channel in channels_by_name.items()
        if name not in sparse and (name in blank or np.ptp(channel) == 0)
    )
    # without ranges of training scans, one channel with contrast is enough
    is_predicted = not empty or (check is None and len(empty) < len(channels_by_name))
    score: float | None = None
    warning = ""
    if empty:
        advice = "Nothing was detected."
        if is_predicted:
            advice = "Do not rely on the result unless it is often empty in training scans."
        warning = (
            f"Channel {empty[0]} is empty: all or nearly all of its voxels are equal. {advice}"
        )
    elif check is not None:
        present = list(channels_by_name.values())
        numbers = grid_statistics(*_canonical_grid(file))
        numbers |= image_statistics(present, list(channels_by_name))
        score, warning = check.compare(numbers, polarity_features(present, list(channels_by_name)))
    if missing_names:
        without = f"Predicted without {', '.join(missing_names)}, so expect a lower sensitivity."
        warning = f"{without} {warning}".strip()
    if is_predicted:
        return InputCheckResult(score, warning, missing_names, empty=empty)
    return InputCheckResult(score, warning, missing_names, blank=empty)


def _canonical_grid(geometry: Geometry) -> tuple[list[int], list[float]]:
    """Return shape and spacing of a grid in the canonical order of axes.

    The statistics of the training scans have this order, whatever the axis order of a file is.
    """
    order = geometry.canonical_order
    return [geometry.shape[axis] for axis in order], [geometry.spacing_mm[axis] for axis in order]


def channels_without_contrast(volume: Volume, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the channels without contrast: at least 99.9 % of the voxels are equal.

    Intensities with a relative difference of up to 1e-5 count as equal, because a constant may
    have been scaled. Missing channels are ignored. Invalid voxels (`Volume.valid`) are ignored,
    except if all voxels are invalid.

    Args:
        volume: The scan before normalisation.
        names: Names of all channels.
    """
    return tuple(
        name
        for c, name in enumerate(names)
        if c not in volume.missing and _is_blank(volume.array[c], volume.valid)
    )


def _is_blank(channel: NDArray[Any], valid: Flags | None) -> bool:
    """Return True if a channel has no contrast: at least 99.9 % of its valid voxels are equal.

    Voxels are equal if they differ from the median of a sample by a relative difference of up to
    1e-5. If no voxel is valid, or `valid` is None, all voxels count.
    """
    values = channel[valid] if valid is not None and valid.any() else channel
    sample = _sample_channel(values)
    median = float(np.median(sample))
    tolerance = EQUAL * abs(median)
    # Most scans are far from blank, which a sample already shows. It is compared with half of the
    # limit, because it may differ from all voxels.
    equal_share_of_sample = np.mean(np.abs(sample - median) <= tolerance)
    if equal_share_of_sample < BLANK_SHARE / 2:
        return False
    return bool(np.mean(np.abs(values - median) <= tolerance) >= BLANK_SHARE)


def check_extent(geometry: Geometry, plan: Plan, where: str) -> None:
    """Check spacing and extent of a scan, to find headers with a wrong unit before resampling.

    - The spacing may be at most a hundred times smaller or larger than the plan's. It is not
      checked if the plan has another number of axes.
    - A volume may extend over at most 5 m along an axis.

    Args:
        geometry: The grid of the scan's file.
        plan: Plan of the network.
        where: Name of the scan in the error message.

    Raises:
        GeometryError: If spacing or extent are implausible.
    """
    shape, spacing = _canonical_grid(geometry)
    extent = np.multiply(shape, spacing)
    ratios = np.ones(1)  # of the file's spacing and the plan's; 1 is accepted
    if len(plan.spacing_mm) == geometry.dims:  # otherwise `prepare_volume` raises an error
        ratios = np.divide(spacing, plan.spacing_mm)
    is_odd = max(ratios.max(), 1 / ratios.min()) > MAX_RATIO
    is_huge = geometry.dims == 3 and extent.max() > MAX_EXTENT_MM
    if not is_odd and not is_huge:
        return
    # name the unit that would explain the spacing
    unit = ""
    for factor, unit_name in ((1000, "micrometres"), (1 / 1000, "metres")):
        # a wrong unit gives a ratio of about 1/1000 or 1000; scans differ by a factor of up to 5
        if ((ratios * factor >= 0.2) & (ratios * factor <= 5)).all():
            unit = f", perhaps {unit_name} for millimetres"
    raise GeometryError(
        f"{where}: the header states voxels of {describe_sides(spacing)} mm and an extent of "
        f"{describe_sides(extent)} mm; this model works on voxels of "
        f"{describe_sides(plan.spacing_mm)} mm. The spacing or its unit is wrong{unit}. Correct "
        "the header."
    )
