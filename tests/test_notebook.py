"""The commands as functions: the words of the command line, and results that show themselves."""

from pathlib import Path
from unittest.mock import Mock

import pytest

import lesionseg
from lesionseg.errors import ConfigError, ReadError
from tests.pipeline.cases import boxes, write_array

SEEN, MISSED = (2, 2, 2, 6), (15, 15, 15, 4)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> lesionseg.Run:
    """One lesion found and one missed on each of two cases, by masks."""
    folder = tmp_path_factory.mktemp("scored")
    for case in ("a", "b"):
        for name, places in (("truth", [SEEN, MISSED]), ("masks", [SEEN])):
            write_array(folder / name / f"{case}.nii.gz", boxes((24, 24, 24), *places))
    return lesionseg.evaluate(folder / "truth", folder / "masks", folder / "scores", replicates=10)


def test_scores_tables_and_the_page_of_an_evaluation(scored: lesionseg.Run, tmp_path: Path) -> None:
    assert scored.scores["lesion_recall"]["value"] == 0.5
    assert scored.to_pandas("lesions")["detected"].tolist() == [True, False] * 2
    assert list(scored.to_pandas("cases")["case"]) == ["a", "b"]
    assert "<td>lesion recall</td><td>0.500</td>" in scored._repr_html_()
    assert scored.plot().axes
    assert scored.report(tmp_path, report__pdf=False).is_file()


def test_ids_stay_text_and_boxes_are_numbers(scored: lesionseg.Run, tmp_path: Path) -> None:
    table = (scored.folder / "lesions.csv").read_text().replace("\na,", "\n007,", 1)
    (tmp_path / "lesions.csv").write_text(table.replace("\na,", "\n'=b,"))
    frame = lesionseg.Run(tmp_path).to_pandas("lesions")
    assert frame["case"].tolist() == ["007", "=b", "b", "b"]
    assert frame["start_z_vox"].tolist() == [2, 15] * 2
    assert frame["centre_x_mm"].tolist() == [4.5, 16.5] * 2


def test_what_is_not_there_is_named(scored: lesionseg.Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the table"):
        scored.to_pandas("lesion")
    with pytest.raises(ReadError, match="no such table"):
        lesionseg.Run(tmp_path).to_pandas("cases")
    with pytest.raises(ConfigError, match="Did you mean 'preset'"):
        lesionseg.evaluate("a", "b", "c", presett="iou50")


def test_settings_are_typed_as_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Mock(return_value=Path("runs/a"))
    monkeypatch.setattr("lesionseg.api.recipe", recipe)
    settings = {"loss.gamma": 1.5, "model__tile_shape": (32, 32, 32), "trainer__max_steps": None}
    run = lesionseg.train("my data", loss="focal", **settings)
    assert run.folder == Path("runs/a")
    (_, cfg), _ = recipe.call_args
    assert (cfg.data.root, cfg.loss.gamma, cfg.trainer.max_steps) == ("my data", 1.5, None)
    assert list(cfg.model.tile_shape) == [32, 32, 32]
