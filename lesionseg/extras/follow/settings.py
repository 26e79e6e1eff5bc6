"""The settings of `follow`. Defaults and meanings are in `conf/follow.yaml`."""

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
        """Return self. Raise `ValueError` if it is not clear which visits to compare.

        These are two folders of predictions, or a table of visits with a bundle or predictions.
        Such a table already names the images.
        """
        folders = [self.before, self.after]
        has_all_folders = None not in folders
        has_no_folder = folders == [None, None]
        has_no_table = self.visits is None and self.bundle is None and self.predictions is None
        has_one_source = (self.bundle is None) != (self.predictions is None)
        are_two_folders = has_all_folders and has_no_table
        is_table = self.visits is not None and has_one_source and has_no_folder
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
        """Return the settings that predict the visits of the table into `folder`."""
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
