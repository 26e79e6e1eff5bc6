"""Choose the scans to predict: those of a shard, without localisers, single slices and others."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from lesionseg.config import SeriesConfig
from lesionseg.errors import LesionsegError
from lesionseg.io.dicom.scans import DicomScan
from lesionseg.io.layouts.checks import comparison_key
from lesionseg.io.layouts.input_images import FoundScan, FoundScans
from lesionseg.io.volumes import read_geometry
from lesionseg.plan.plan import Plan

LEAST_SLICES = 2  # a scan of an archive with fewer slices is skipped, if the model reads volumes


def is_archive(source: Path) -> bool:
    """Return True for a folder or a glob, in which the user did not choose each scan.

    A file, a series `folder/series=…` and a table name the scans to predict.
    """
    return not source.is_file() and not source.name.startswith("series=")


def select_shard(scans: Sequence[FoundScan], index: int, n_shards: int) -> list[FoundScan]:
    """Return the scans that one job of a job array predicts.

    The shard of a scan depends only on its case id. Each job lists the input itself, and scans may
    be added or removed between two listings. A division by position in the list would then give a
    scan to two jobs, or to none.
    """
    return [scan for scan in scans if _shard_of(scan, n_shards) == index]


def _shard_of(scan: FoundScan, n_shards: int) -> int:
    """Return the number of the shard to which a scan belongs.

    A DICOM series changes between its two ids if another series joins or leaves its folder, so the
    number is computed from both. Ids whose files some file system cannot distinguish have the same
    number.
    """
    stable_id = max(scan.case, scan.other_case)
    encoded = comparison_key(stable_id).encode(errors="surrogatepass")  # names may not be UTF-8
    digest = blake2b(encoded, digest_size=8).digest()
    return int.from_bytes(digest) % n_shards


def mark_unwanted_scans(
    found: FoundScans, cfg: SeriesConfig, plan: Plan, *, archive: bool
) -> FoundScans:
    """Return all scans. Those that must not be predicted get the reason as `left_out`.

    The conditions of `cfg` refer to DICOM headers, so they do not apply to files of other formats.
    In an `archive`, localisers, single slices and images with another number of axes than the
    model's are left out as well.
    """
    scans = [_mark_scan(scan, cfg, plan, archive=archive) for scan in found.scans]
    return replace(found, scans=tuple(scans))


def _mark_scan(scan: FoundScan, cfg: SeriesConfig, plan: Plan, *, archive: bool) -> FoundScan:
    """Return the scan, with a reason if it is left out.

    The conditions of `cfg` apply to each DICOM scan. The further conditions of `_explain_unfit`
    apply only in an archive, because otherwise the user chose the scan.
    """
    if scan.left_out or scan.fault:
        return scan
    facts = scan.dicom
    has_conditions = cfg.modality or cfg.description or cfg.min_slices
    if facts is None and has_conditions:
        # the scan of a table has no description yet; its headers are read only if they are needed
        with suppress(LesionsegError, OSError):  # prediction will raise the same error
            facts = scan.facts
    if facts is None or facts.fault:  # another format, or a scan that prediction will reject
        return scan
    reason = _explain_unwanted(facts, cfg, plan.dims)
    if not reason and archive:
        reason = _explain_unfit(facts, cfg, plan.dims)
    return replace(scan, left_out=reason)


def _explain_unwanted(facts: DicomScan, cfg: SeriesConfig, dims: int) -> str:
    """Explain why a DICOM scan does not meet the conditions of `cfg`; "" if it does."""
    if cfg.modality is not None and facts.modality.upper() not in cfg.modality:
        wanted = ", ".join(cfg.modality)
        return f"its modality is {facts.modality or 'not stated'}, not {wanted} (series.modality)"
    if cfg.description is not None and not re.search(cfg.description, facts.description, re.I):
        stated = repr(facts.description) if facts.description else "not stated"
        return f"its description is {stated}, unlike {cfg.description!r} (series.description)"
    if cfg.min_slices is not None and dims == 3 and facts.n_slices < cfg.min_slices:
        return f"it has {facts.n_slices} of at least {cfg.min_slices} slices (series.min_slices)"
    return ""


def _explain_unfit(facts: DicomScan, cfg: SeriesConfig, dims: int) -> str:
    """Explain why a DICOM scan of an archive does not suit the model; "" if it may suit."""
    if dims == 2:
        return "" if facts.is_radiograph else "a volume, while this model reads radiographs"
    if facts.is_radiograph:
        return "a radiograph, while this model reads volumes"
    if facts.is_localiser and cfg.description is None:
        return f"a localiser by its description, {facts.description!r}"
    if cfg.min_slices is None and facts.n_slices < LEAST_SLICES:
        return "a single slice; series.min_slices=1 predicts it"
    return ""


def explain_too_few_slices(scan: FoundScan, cfg: SeriesConfig, plan: Plan, *, archive: bool) -> str:
    """Explain that a file of another format than DICOM has too few slices; "" if it has enough.

    The header of the file is read, and slices are counted along the shortest axis.
    """
    least = cfg.min_slices or (LEAST_SLICES if archive else 1)
    if plan.dims != 3 or least == 1 or scan.dicom is not None:
        return ""
    with suppress(LesionsegError, OSError):  # prediction will raise the same error
        shape = read_geometry(scan.files.images[0]).shape
        if len(shape) == 3 and min(shape) < least:
            return f"it has {min(shape)} of at least {least} slices (series.min_slices)"
    return ""
