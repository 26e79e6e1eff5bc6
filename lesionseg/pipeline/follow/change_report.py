"""Changes as a DICOM structured report of the later visit, where that is DICOM."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from lesionseg import __version__
from lesionseg.evaluation.change import LesionChange
from lesionseg.io.dicom.source_images import REPORT, ResultOrigin, read_source, require_highdicom
from lesionseg.io.dicom.sr_write import SinceBefore, write_report
from lesionseg.io.volumes import is_dicom_image
from lesionseg.pipeline.follow.visit_pairs import PairFiles, VisitPair


def is_reported(files: PairFiles) -> bool:
    """Whether the later scan is DICOM; raises `ConfigError` without highdicom if it is."""
    is_dicom = files.after_image is not None and is_dicom_image(files.after_image)
    if is_dicom:
        require_highdicom()
    return is_dicom


def report_changes(
    folder: Path, files: PairFiles, pair: VisitPair, changes: Sequence[LesionChange]
) -> None:
    """Write `<case>_sr.dcm`: the lesions of the later visit, what became of each, and what is gone.

    New lesions below the operating point are left out. Raises `OutputError`.
    """
    if files.after_image is None:
        return
    shown = [c for c in changes if c.accepted or c.state != "new"]
    since = {
        lesion: SinceBefore(c.state, c.volume_before_ml) for c in shown for lesion in c.lesion_after
    }
    gone = [f"{c.volume_before_ml or 0:.3g} ml" for c in shown if c.state == "gone"]
    candidates = [replace(c, accepted=c.id in since) for c in pair.prediction.candidates]
    lesions = replace(pair.prediction, candidates=tuple(candidates), operating_point=None)
    key = blake2b(repr(changes).encode(), digest_size=8).hexdigest()
    names = {c.label: f"lesion of label {c.label}" for c in candidates}
    remark = f"Compared with an earlier visit. Gone since: {', '.join(gone) or 'nothing'}."
    write_report(
        folder / f"{files.case}{REPORT}",
        lesions,
        read_source(files.after_image),
        ResultOrigin(__version__, "follow-up", key),
        names,
        since=since,
        remark=remark,
    )
