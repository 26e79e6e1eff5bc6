"""`Experiment`: settings, dataset, run directory and device that all steps of a training share.

The values are made once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lesionseg.config import TrainConfig
from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.evaluation import find_preset
from lesionseg.pipeline.chosen_model import (
    keep_choices_of_run,
    model_for,
    with_choices,
)
from lesionseg.pipeline.dataset_inspection import (
    STATISTICS,
    DatasetInspection,
    cache_folder,
    inspect_dataset,
    labelled_cases,
)
from lesionseg.pipeline.provenance import training_provenance
from lesionseg.pipeline.run_dir import check_config, config_of
from lesionseg.pipeline.score_cases import MatchOptions
from lesionseg.plan.model_choice import ReferenceKinds
from lesionseg.training.processes import training_device

BUNDLE = "bundle"


@dataclass(frozen=True)
class Experiment:
    """The settings, cases and folder of a training, before it is planned.

    Attributes:
        cfg: The settings.
        inspection: The cases, their statistics and their roles.
        run: The run directory.
        origin: The provenance of the results: versions, device, dataset. See `training_provenance`.
        why_model: Why `model=auto` became this model; empty if the user named the model.
    """

    cfg: TrainConfig
    inspection: DatasetInspection
    run: Path
    origin: Mapping[str, Any] = field(default_factory=dict)
    why_model: str = ""

    @classmethod
    def open(cls, cfg: TrainConfig, run: Path) -> "Experiment":
        """Read and check every case, and return the experiment with the chosen model, see `on`.

        The only file that is written is `facts.json` of the cache.

        Args:
            cfg: The settings.
            run: The run directory.

        Raises:
            DatasetError: If files cannot be used. The message lists them; see `inspect_dataset`.
            ConfigError: If a setting is wrong; see `inspect_dataset`.
        """
        statistics = cache_folder(cfg.data, run) / STATISTICS
        return cls.on(cfg, inspect_dataset(cfg.data, cfg.seed, statistics), run)

    @classmethod
    def on(cls, cfg: TrainConfig, inspection: DatasetInspection, run: Path) -> "Experiment":
        """Return the experiment on an inspected dataset, with the chosen model for `model=auto`.

        If `run` is a run directory already, its model and learning rate are used for settings that
        are `auto`, so that the run can be resumed.
        """
        named = keep_choices_of_run(cfg, run)
        model = model_for(named.model, ReferenceKinds.of(inspection.fingerprint))
        cfg = with_choices(named, model.value, named.optim.lr)
        device = training_device(cfg.trainer.accelerator)
        origin = training_provenance(inspection, cfg.data, cfg.seed, device)
        return cls(cfg=cfg, inspection=inspection, run=run, origin=origin, why_model=model.reason)

    @staticmethod
    def check_run(cfg: TrainConfig, run: Path) -> None:
        """Raise `ConfigError` if a run directory belongs to another configuration.

        A model or learning rate of `auto` in `cfg` counts as equal to that of the run.
        """
        check_config(run, config_of(keep_choices_of_run(cfg, run)))

    def on_this_process(self, cfg: TrainConfig) -> "Experiment":
        """Return this experiment, which rank 0 opened, with the settings of the current process.

        Settings may differ between the processes of a distributed training: each node can have
        another cache folder. The model and the learning rate stay those that rank 0 has chosen.
        """
        return replace(self, cfg=with_choices(cfg, self.cfg.model.architecture, self.cfg.optim.lr))

    @property
    def dataset(self) -> Dataset:
        """The dataset with the cases of all roles."""
        return self.inspection.dataset

    @property
    def match_options(self) -> MatchOptions:
        """The settings for matching predictions with the references of this dataset."""
        return MatchOptions(find_preset(self.cfg.preset), self.dataset)

    @property
    def bundle(self) -> Path:
        """The folder of the trained model in the run directory."""
        return self.run / BUNDLE

    @property
    def cache(self) -> Path:
        """The folder of prepared cases, see `cache_folder`."""
        return cache_folder(self.cfg.data, self.run)

    @property
    def device(self) -> str:
        """The device of the training, `cuda` or `cpu`."""
        return training_device(self.cfg.trainer.accelerator)

    def cases(self, role: Role) -> list[CaseFiles]:
        """Return the cases of a role that have a reference, each with this role."""
        return labelled_cases(self.inspection, role)

    def with_origin(self, **further: Any) -> "Experiment":
        """Return a copy of the experiment with further entries in the provenance of its results."""
        return replace(self, origin={**self.origin, **further})
