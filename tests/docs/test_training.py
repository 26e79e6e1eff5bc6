"""docs/training.md: the loss it shows is one that trains, and its commands are ones it takes."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lesionseg.cli import compose

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if "scripts/" in line
]


def overrides(command: str) -> tuple[str, list[str]]:
    """The verb and what follows it."""
    words = shlex.split(command, comments=True)
    place = next(i for i, word in enumerate(words) if word.startswith("scripts/"))
    return Path(words[place]).stem, words[place + 1 :]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_lesionseg_takes(command: str) -> None:
    compose(*overrides(command))


def test_the_loss_of_ones_own_is_called_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = (b for language, b in BLOCKS if language == "python" and "VoxelLoss" in b)
    (tmp_path / "my_losses.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (command,) = (command for command in COMMANDS if "my_losses" in command)
    cfg = compose(*overrides(command))
    loss = instantiate(OmegaConf.to_container(cfg.loss, resolve=True), _convert_="all")
    assert (loss.power, loss.link, loss.activation) == (3, None, "sigmoid")
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    valid = torch.tensor([[True, False]])
    terms = loss(logits, torch.tensor([[1, 0]]), valid=valid, normaliser=torch.tensor(4.0))
    assert terms["power"].item() == pytest.approx(0.5**3 / 4)
    terms["power"].backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].tolist() == [pytest.approx(-3 * 0.5**2 * 0.25 / 4), 0]
