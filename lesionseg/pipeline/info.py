"""`info`: state the needs of a model and the contents of a data folder. Nothing is written."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionseg.config import InfoConfig
from lesionseg.core import Dataset, Finding
from lesionseg.core.finding import collect_errors
from lesionseg.io.layouts import find_missing_files, list_dataset
from lesionseg.io.remote import download
from lesionseg.io.volumes import format_suffix, read_geometry
from lesionseg.pipeline.log import command_line
from lesionseg.pipeline.outcome import Outcome

if TYPE_CHECKING:
    from lesionseg.inference.model_facts import ModelFacts

_MOST_FINDINGS = 5  # that are printed


@dataclass(frozen=True)
class InfoOutcome(Outcome):
    """The facts about a model and a dataset.

    Attributes:
        model: the facts about the model. None if none was given.
        dataset: the facts about the dataset by name (`dataset_facts`). Empty if none was given.
        findings: the findings of the listing.
        settings: the settings of the next command.
    """

    model: "ModelFacts | None"
    dataset: Mapping[str, Any]
    findings: tuple[Finding, ...]
    settings: Mapping[str, object]

    def record(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return {
            "model": None if self.model is None else self.model.record(),
            "dataset": self.dataset or None,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def summary(self) -> list[str]:
        """Return a line per fact, and the first findings."""
        lines = [] if self.model is None else self.model.lines()
        for name, value in self.dataset.items():
            if value:
                lines.append(f"{name.capitalize() + ':':<8} {_in_words(value)}")
        lines += [f"- {it.severity}: {it.message}" for it in self.findings[:_MOST_FINDINGS]]
        n_hidden = len(self.findings) - _MOST_FINDINGS
        return [*lines, f"- and {n_hidden} more"] if n_hidden > 0 else lines

    @property
    def next(self) -> str:
        """The command that predicts with the model or, without a model, checks the dataset."""
        return command_line("prepare" if self.model is None else "predict", self.settings)


def info(cfg: InfoConfig) -> InfoOutcome:
    """Collect the facts about a model, a dataset or both.

    Raises:
        BundleError: if the model cannot be used.
        DatasetError: if the folder has no known layout, or its description is wrong.
    """
    model = None
    dataset: dict[str, Any] = {}
    findings: list[Finding] = []
    settings: dict[str, object] = {"check": True}
    if cfg.data.root is not None:
        listed = list_dataset(
            download(cfg.data.root), group=cfg.data.group, annotations=cfg.data.annotations
        )
        findings = [*listed.findings, *find_missing_files(listed)]
        dataset = dataset_facts(listed, findings)
        settings |= {f"data.{key}": value for key, value in cfg.data.to_plain().items() if value}
    if cfg.bundle is not None:
        # this imports torch, which takes longer than to list a folder
        from lesionseg.inference.model_facts import model_facts

        model = model_facts(Path(cfg.bundle))
        settings = model.settings
        needs = (model.plan.dims, model.plan.channel_names)
        has = (dataset.get("axes"), dataset.get("channels"))
        if dataset and needs == has:
            dataset["fits"] = "axes and channels are those of the model"
        elif dataset:
            text = "the model needs %s axes and the channels %s; the folder has %s and %s"
            findings.append(Finding("misfit", text % (*map(_in_words, (*needs, *has)),)))
    return InfoOutcome(model, dataset, tuple(findings), settings)


def dataset_facts(dataset: Dataset, findings: list[Finding]) -> dict[str, Any]:
    """Return the facts about a listed dataset by name.

    Only the header of the first image is read. If it cannot be read, this is added to `findings`.
    """
    cases = dataset.cases
    size = ""
    for files in cases[:1]:
        with collect_errors(findings, files.case):
            grid = read_geometry(files.images[0], pixel_mm=files.pixel_mm)
            spacing = " × ".join(f"{mm:.3g}" for mm in grid.spacing_mm)
            shape = " × ".join(map(str, grid.shape))
            size = f"{shape} voxels of {spacing} {grid.size_unit}, the first case"
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
        "files": Counter(format_suffix(path).lower() or "DICOM" for path in paths),
        "size": size,
    }


def _in_words(value: object) -> str:
    """Return a fact as text, with commas between several values."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} ({one})" for key, one in value.items())
    return ", ".join(value) if isinstance(value, tuple) else str(value)
