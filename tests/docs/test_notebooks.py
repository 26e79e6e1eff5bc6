"""The notebooks of docs/notebooks: their cells run in order, on simulated data, as they stand."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
PAGES = sorted(FOLDER.glob("*.md"))


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("as_ipynb", FOLDER / "as_ipynb.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_becomes_a_notebook_without_outputs(hook: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    notebook = json.loads(hook.as_ipynb(text))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) == text.count("```python\n") >= 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert f"({page.stem}.ipynb)" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a reader's own session is not this strict
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_cells_run_in_order(
    hook: ModuleType, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, (kind, source) in enumerate(hook.cells(page.read_text(encoding="utf-8"))):
        if kind == "code":
            exec(compile(source, f"{page.name}, part {number}", "exec"), names)
