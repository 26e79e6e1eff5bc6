"""The file that answers a request, and its warnings."""

from dataclasses import dataclass

from lesionseg.core import Prediction

WARNING_HEADER = "X-Lesionseg-Warning"


@dataclass(frozen=True)
class Answer:
    """The requested file of a predicted scan.

    Attributes:
        name: its name.
        content: its content.
        warning: sentences about the scan, such as that it is unlike the training scans. Empty if
            there are none.
    """

    name: str
    content: bytes
    warning: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a download of the file, in ASCII."""
        headers = {"Content-Disposition": f'attachment; filename="{self.name}"'}
        if self.warning:
            text = " ".join(self.warning.split())
            headers[WARNING_HEADER] = text.encode("ascii", "backslashreplace").decode()
        return headers


def warning_of(prediction: Prediction) -> str:
    """Return the warnings of the input check and of the limit on candidates, as `predict` does."""
    checked = prediction.input
    sentences = [checked.warning if checked is not None else "", prediction.left_out_note]
    return " ".join(filter(None, sentences))
