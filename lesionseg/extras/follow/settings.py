"""Types and ranges of the settings of `follow`. Their defaults are in `conf/follow.yaml`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator

from lesionseg.config import (
    Bundles,
    Confidence,
    FilePath,
    FolderPath,
    InferenceConfig,
    OutputCommand,
    OutputPath,
    PathKind,
    PredictConfig,
    Texts,
)


class FollowConfig(OutputCommand):
    """The settings of `follow`."""

    before: FolderPath
    after: FolderPath
    output: OutputPath
    visits: FilePath
    bundle: Annotated[Bundles | None, PathKind.BUNDLE]
    predictions: FolderPath
    inference: InferenceConfig
    device: str
    operating_point: str | None
    before_images: FolderPath
    after_images: FolderPath
    register_: Literal["auto", "headers", "rigid"] = Field(alias="register")
    reference: FolderPath
    stable: Texts | None
    false_new_per_pair: NonNegativeFloat
    overlap: Annotated[float, Field(gt=0, le=1)]
    confidence: Confidence
    merge_labels: bool
    dicom_output: bool
    identifiers: bool
    trust: bool
    replicates: NonNegativeInt
    seed: NonNegativeInt

    @model_validator(mode="after")
    def _validate_sources(self) -> Self:
        """Check that the settings name the visits to compare in exactly one way.

        - Two folders of predictions: `before` and `after`, without `visits`, `bundle` and
          `predictions`.
        - A table: `visits` with either `bundle` or `predictions`. The table already names the
          images, so `before_images` and `after_images` must not be set.

        Raises:
            ValueError: If the settings are neither.
        """
        folders = [self.before, self.after]
        has_both_folders = None not in folders
        has_no_folder = folders == [None, None]
        has_no_table = self.visits is None and self.bundle is None and self.predictions is None
        has_bundle_or_predictions = (self.bundle is None) != (self.predictions is None)  # not both
        are_two_folders = has_both_folders and has_no_table
        is_table = self.visits is not None and has_bundle_or_predictions and has_no_folder
        if not are_two_folders and not is_table:
            raise ValueError(
                "give before= and after=, or visits= with either bundle= or predictions="
            )
        if is_table and (self.before_images, self.after_images) != (None, None):
            raise ValueError(
                "before_images= and after_images= belong to before= and after=; with visits=, the "
                "table names the scans"
            )
        return self

    def of_predict(self, folder: Path) -> PredictConfig:
        """Return the settings of `predict` for the visits of the table, with `folder` as output."""
        return PredictConfig.of(
            bundle=self.bundle,
            input=self.visits,
            output=folder,
            inference=self.inference,
            device=self.device,
            operating_point=self.operating_point,
            dicom_output=self.dicom_output,
            trust=self.trust,
        )
