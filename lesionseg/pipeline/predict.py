"""Predict: a bundle and a folder of scans in; masks, candidates and a status per scan out."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.inference.settings import InferenceSettings
from lesionseg.io.images import find_images
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.predict_cases import PredictJob, predict_cases
from lesionseg.pipeline.predict_table import Predicted, PredictionTable
from lesionseg.pipeline.predict_write import SaveProbabilities
from lesionseg.pipeline.progress import Advance, bar
from lesionseg.pipeline.settings import DicomSettings
from lesionseg.plan.plan import Plan


def predict(
    bundle: str | Path | Sequence[str | Path],
    input: str | Path,
    output: str | Path,
    *,
    inference: InferenceSettings | None = None,
    operating_point: str | None = None,
    device: str = "auto",
    raster_mm: float | None = None,
    dicom: DicomSettings | None = None,
    save_probabilities: SaveProbabilities = "none",
    architectures: Mapping[str, NetworkFactory] | None = None,
    progress: Advance | None = None,
) -> Predicted:
    """Predict every case found in `input`; one row each, by case id.

    `bundle`: one, or several that are averaged. `input`: a folder, a glob, a file or a manifest;
    see `find_images`. Writes mask, instances and candidates of each case to `output`, in the
    scan's own geometry and format, with `save_probabilities` also
    `probabilities/<case>_<label>`, and `predictions.csv`; rows of other cases in that file stay. A
    case that fails does not stop the others. Started again, it leaves out what is done and
    unchanged. Reading, the network and writing overlap. `operating_point`, `device`, `raster_mm`
    and `architectures`: see `Predictor`; `dicom` says what is done with a tilted gantry.
    `progress(case, done, total)` is called after every case, in place of a bar. Raises
    `BundleError` or `ConfigError` for an unusable bundle or setting and an output folder that is
    the input folder, `DatasetError` when there is no case.
    """
    folders = (bundle,) if isinstance(bundle, (str, Path)) else tuple(bundle)
    job = PredictJob(
        bundles=tuple(Path(folder) for folder in folders),
        output=Path(output),
        inference=inference or InferenceSettings(),
        operating_point=operating_point,
        device=device,
        raster_mm=raster_mm,
        tilt=(dicom or DicomSettings()).tilt,
        save_probabilities=save_probabilities,
    )
    predictor = job.predictor(architectures)
    cases = find_cases(Path(input), job.output, predictor.plan)
    table = PredictionTable(job.output)
    found = predict_cases(job, cases, known=table.rows, predictor=predictor)
    rows = []
    try:
        with bar("Predicting") as advance, closing(found):
            for row in found:
                table.put(row)
                rows.append(row)
                (progress or advance)(row.case, len(rows), len(cases))
    finally:
        table.close()
    return Predicted(sorted(rows, key=lambda row: row.case))


def find_cases(source: Path, output: Path, plan: Plan) -> list[CaseFiles]:
    """The cases of `source`, results of an earlier run in `output` left out."""
    if source.is_dir() and output.exists() and source.samefile(output):
        raise ConfigError(
            "The output folder is the input folder: its masks would be taken for scans.",
            where="output",
            seen=output,
            remedy="choose another folder; it may lie inside the input folder.",
        )
    results = output.resolve()
    found = find_images(source, len(plan.channel_names))
    cases = [c for c in found if not any(results in p.resolve().parents for p in c.images)]
    if not cases:
        raise DatasetError("There is no scan to predict.", where=source)
    return cases
