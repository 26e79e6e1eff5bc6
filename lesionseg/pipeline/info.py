"""`info`: printed lines on a folder of data or scans, and whether a model fits.

Nothing is written.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionseg.config import InfoConfig
from lesionseg.core import CaseFiles, Dataset, Finding, Labels
from lesionseg.core.finding import collect_errors
from lesionseg.errors import DatasetError
from lesionseg.io.layouts import find_missing_files, list_dataset, recognise_layout
from lesionseg.io.remote import download
from lesionseg.io.scans import find_scans
from lesionseg.io.volumes import format_suffix, read_geometry
from lesionseg.pipeline.log import command_line, predict_command
from lesionseg.pipeline.outcome import Outcome

if TYPE_CHECKING:
    from lesionseg.inference.model_info import ModelInfo

SCANS = "scans"  # the layout of a folder that is no dataset
_MAX_FINDINGS = 5  # that are printed


@dataclass(frozen=True)
class InfoOutcome(Outcome):
    """The details of a model and a folder.

    Attributes:
        model: The details of the model. None if none was given.
        dataset: The details of the folder by name (`dataset_info`). Empty if none was given.
        findings: The findings of the listing, one if the first image cannot be read, and one if
            the dataset does not fit the model.
        settings: The settings that name the dataset.
    """

    model: "ModelInfo | None"
    dataset: Mapping[str, Any]
    findings: tuple[Finding, ...]
    settings: Mapping[str, object]

    def record(self) -> dict[str, Any]:
        """Return the details of model and dataset, and all findings, as plain data, for `--json`.

        The value of a model or dataset that was not given is None.
        """
        return {
            "model": None if self.model is None else self.model.record(),
            "dataset": self.dataset or None,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def summary(self) -> list[str]:
        """Return lines for the terminal: one per known detail, and the first five findings."""
        lines = [] if self.model is None else self.model.lines()
        details = {name: value for name, value in self.dataset.items() if value}
        # 8 columns, as for the other names in the output of a command
        lines += [f"{name.capitalize() + ':':<8} {_in_words(details[name])}" for name in details]
        lines += [f"- {it.severity}: {it.message}" for it in self.findings[:_MAX_FINDINGS]]
        n_hidden = len(self.findings) - _MAX_FINDINGS
        return [*lines, f"- and {n_hidden} more"] if n_hidden > 0 else lines

    @property
    def next(self) -> str:
        """The command to run next.

        With a model, this is the command that predicts with the model. Without a model, it checks a
        dataset, or predicts a folder of scans with a model that the user has to insert.
        """
        # without a model there is a dataset
        if self.model is None and self.dataset["layout"] != SCANS:
            return command_line("prepare", {"check": True, **self.settings})
        if self.model is None:
            return predict_command("MODEL", is_mirrored=False)
        # imports torch, as the details of a model do
        from lesionseg.data.transforms import needs_trust

        plan = self.model.plan
        return predict_command(
            self.model.path,
            is_mirrored=self.model.selection.is_mirrored,
            needs_trust=needs_trust(plan.architecture.network, plan.prepare_extra),
        )


def info(cfg: InfoConfig) -> InfoOutcome:
    """Collect the details of a model, of a folder, or of both, and check whether they fit together.

    Model and folder fit if the folder has the model's number of axes and channels. A folder without
    the layout of a dataset is a folder of scans, whose channels are not known. With the setting
    `data.annotations`, the folder is always a dataset.

    Raises:
        BundleError: If the model cannot be used.
        DatasetError: If the description of the dataset is wrong, or the folder has no scan that can
            be read.
    """
    model = None
    dataset: dict[str, Any] = {}
    findings: list[Finding] = []
    settings: dict[str, object] = {}
    if cfg.data.root is not None:
        root = download(cfg.data.root)
        # the outcome repeats the user's settings in the command that it prints
        settings = {f"data.{key}": value for key, value in cfg.data.to_plain().items() if value}
        if cfg.data.annotations is None and recognise_layout(root) is None:
            listed = _list_scans(root)
            findings += listed.findings
        else:
            listed = list_dataset(root, group=cfg.data.group, annotations=cfg.data.annotations)
            findings += [*listed.findings, *find_missing_files(listed)]
        dataset = dataset_info(listed, findings)
    if cfg.bundle is not None:
        # this imports torch, which takes longer than to list a folder
        from lesionseg.inference.model_info import model_info

        model = model_info(cfg.bundle)
        needs = {"axes": model.plan.dims, "channels": model.plan.channel_names}
        has = {name: dataset[name] for name in needs if dataset.get(name)}
        # everything that is known of the folder equals what the model needs
        if has and has.items() <= needs.items():
            dataset["fits"] = f"{' and '.join(has)} are those of the model"
        elif has:
            text = f"the model needs {_in_words(needs)}; the folder has {_in_words(has)}"
            findings.append(Finding("misfit", text))
    return InfoOutcome(model, dataset, tuple(findings), settings)


def _list_scans(source: Path) -> Dataset:
    """Return a folder of scans as a dataset without references and channels.

    Problems that show without opening the files are findings of the dataset, such as two scans with
    one name. The number of axes is that of the first scan whose header can be read.

    Raises:
        DatasetError: If no scan is found, or none can be read.
    """
    found = find_scans(source, channels=1)  # the number is not known, so each file is a scan
    cases = found.cases()
    return Dataset(
        name=source.name,
        root=source,
        layout=SCANS,
        dims=_first_dims(cases),
        channel_names=(),
        labels=Labels.of({}),
        cases=tuple(cases),
        findings=tuple(finding for scan in found.scans for finding in scan.findings),
    )


def _first_dims(cases: Sequence[CaseFiles]) -> int:
    """Return the number of spatial axes of the first scan whose header can be read.

    If no header can be read, raise `DatasetError` with the error of the first scan.
    """
    findings: list[Finding] = []
    for files in cases:
        with collect_errors(findings, files.case):
            # any pixel size will do, because only the number of axes is used
            return read_geometry(files.images[0], pixel_mm=1.0).dims
    raise DatasetError(findings[0].message)


def dataset_info(dataset: Dataset, findings: list[Finding]) -> dict[str, Any]:
    """Return the details of a listed dataset by name, in the order in which they are printed.

    Only one image header is read, that of the first case. It gives `shape` in voxels and `spacing`,
    the voxel size in `unit`. These three are None if there is no case, or if the header cannot be
    read. The error of the header is then appended to `findings`.
    """
    cases = dataset.cases
    grid = None  # of the first case
    for files in cases[:1]:
        with collect_errors(findings, files.case):
            grid = read_geometry(files.images[0], pixel_mm=files.pixel_mm)
    paths = [path for files in cases for path in (*files.images, files.reference) if path]
    references = "boxes" if dataset.lesions_are_boxes else "masks"
    return {
        "folder": str(dataset.root),
        "layout": dataset.layout,
        "cases": len(cases),
        "patients": len({files.patient for files in cases}),
        references: sum(files.is_labelled for files in cases),
        "roles": Counter(files.role or "not stated" for files in cases),
        "folds": Counter(files.fold for files in cases if files.fold is not None),
        "splits": dataset.split_file and str(dataset.split_file),
        "axes": dataset.dims,
        "channels": dataset.channel_names,
        "labels": dataset.labels.mask_names,
        # files of DICOM often have no suffix
        "files": Counter(format_suffix(path).lower() or "DICOM" for path in paths),
        "shape": grid and grid.shape,
        "spacing": grid and grid.spacing_mm,
        "unit": grid and grid.size_unit,
    }


def _in_words(value: object) -> str:
    """Return a value as text for a printed line: `key (value)` for mappings, commas between items.

    >>> _in_words({"test": 3, "train": 9}), _in_words(("T1", 0.75)), _in_words(2)
    ('test (3), train (9)', 'T1, 0.75', '2')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} ({_in_words(item)})" for key, item in value.items())
    if isinstance(value, tuple):
        return ", ".join(f"{item:.3g}" if isinstance(item, float) else str(item) for item in value)
    return str(value)
