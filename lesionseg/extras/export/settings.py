"""Types and ranges of the settings of `export`. Their defaults are in `conf/export.yaml`."""

from typing import Annotated, Literal, Self

from pydantic import PositiveInt, model_validator

from lesionseg.config import Bundles, Confidence, FolderPath, OutputPath, PathKind, Settings


class ExportConfig(Settings):
    """The settings of `export`."""

    bundle: Annotated[Bundles, PathKind.BUNDLE]
    output: OutputPath
    format: Literal["onnx", "monai", "bundle"]
    opset: PositiveInt
    reference: FolderPath
    operating_point: str
    rate_confidence: Confidence | None
    group: str | None
    trust: bool
    private: bool

    @model_validator(mode="after")
    def _validate_reference(self) -> Self:
        """Check that the settings which choose an operating point are used together.

        `reference` needs `format=bundle`. `operating_point`, `rate_confidence` and `group` need
        `reference`. Raise `ValueError` otherwise, which pydantic reports.
        """
        if self.reference is not None and self.format != "bundle":
            raise ValueError("reference= needs format=bundle")
        others = (self.rate_confidence, self.group)
        if self.reference is None and (self.operating_point != "auto" or others != (None, None)):
            raise ValueError(
                "operating_point=, rate_confidence= and group= need format=bundle reference=, "
                "the masks of the model's validation cases"
            )
        return self
