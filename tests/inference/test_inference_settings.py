import pytest
import torch

from lesionseg.errors import ConfigError
from lesionseg.inference.inference_settings import InferenceSettings

CPU = torch.device("cpu")


def test_precision_names_a_number_format() -> None:
    assert InferenceSettings(precision="fp32").dtype(CPU) == torch.float32
    assert InferenceSettings(precision="bf16").dtype(CPU) == torch.bfloat16
    assert InferenceSettings().dtype(CPU) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "value"),
    [("overlap", 1.0), ("batch_size", 0), ("precision", "fp8"), ("readers", 0)],
)
def test_wrong_settings_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"inference.{name}"):
        InferenceSettings(**{name: value})  # type: ignore[arg-type]


def test_what_only_takes_time_or_memory_does_not_matter_to_a_result() -> None:
    changed = InferenceSettings(max_memory_gb=3.0, readers=4)
    assert changed.that_matter() == InferenceSettings().that_matter()
    assert InferenceSettings(flips=True).that_matter() != InferenceSettings().that_matter()
