"""Python API of the commands for notebooks, and `Run`: scores, tables and plots of a folder.

The functions accept the same settings as the commands and print nothing.

run = lesionseg.train("data", loss="focal", trainer__max_minutes=5)
run.scores["lesion_recall"].value, run.to_pandas("lesions"), run.plot()
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionseg.cli.command import run_recipe
from lesionseg.cli.compose import compose_plain
from lesionseg.config import StrPath, chosen_options, expand_home, settings_of
from lesionseg.errors import ReadError, require_one_of
from lesionseg.pipeline.log import override_text, progress_bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from lesionseg.evaluation.scores import Scores
    from lesionseg.inference.predictor import Predictor
    from lesionseg.pipeline.check import CheckOutcome
    from lesionseg.plan.plan import Plan

TABLES = ("cases", "lesions", "candidates", "metrics")


@dataclass(frozen=True)
class Run:
    """A folder of results of `train` or `evaluate`. A notebook shows it as a table of scores.

    Attributes:
        folder: The run directory, or the output folder of `evaluate`.
    """

    folder: Path

    def __init__(self, folder: StrPath) -> None:
        # a frozen dataclass does not allow an ordinary assignment
        object.__setattr__(self, "folder", Path(expand_home(folder)))

    @property
    def test(self) -> "Run":
        """The results of a training on its test cases, which are in the subfolder `test`.

        Raises:
            ReadError: If the run has no results on test cases.
        """
        folder = self.folder / "test"
        if not (folder / "scores.json").is_file():
            raise ReadError(f"{self.folder}: the run has no scores of test cases.")
        return Run(folder)

    @property
    def _scores_folder(self) -> Path:
        """The folder that contains the scores and tables.

        It is the subfolder `oof` (out-of-fold) for a cross-validation, otherwise `folder`.
        """
        from lesionseg.pipeline.scores_folder import find_scores

        return find_scores(self.folder)

    @property
    def scores(self) -> "Scores":
        """The content of `scores.json`: `scores["lesion_recall"].value`, `scores.to_json()`.

        For a cross-validation, the file is `oof/scores.json`.

        Raises:
            ReadError: If the folder has no `scores.json`, or it cannot be read.
        """
        from lesionseg.evaluation.scores import read_scores

        return read_scores(self._scores_folder / "scores.json")

    def to_pandas(self, table: str = "lesions") -> "DataFrame":
        """Read a table of the folder as a pandas table. docs/reference.md explains its columns.

        Args:
            table: `cases`, `lesions`, `candidates` or `metrics`.

        Returns:
            The table. `cases`, `lesions` and `candidates` have one row for each of them, and
            `metrics` has one for each logged step of the training (by default every fifth step on
            a CPU, and every 50th on a GPU). The table may have no rows. Case ids and other texts
            stay text, even if they look like numbers.

        Raises:
            ConfigError: If `table` has another value.
            ReadError: If the folder does not have the table.
            ContentError: If the table cannot be read.
        """
        require_one_of("to_pandas: the table", table, TABLES)
        from lesionseg.evaluation.tables import read_table

        folder = self.folder if table == "metrics" else self._scores_folder
        return read_table(folder / f"{table}.csv")

    def plot(self) -> "Figure":
        """Draw the FROC curve: sensitivity against false positives per scan.

        Returns:
            The figure. If the predictions are masks without scores, it shows sensitivity by lesion
            size instead. The figure is empty if the reference has no lesion.

        Raises:
            ReadError: If the folder has no scores.
        """
        from matplotlib.figure import Figure

        from lesionseg.reporting.charts import froc_chart, size_chart
        from lesionseg.reporting.evaluation_tables import read_evaluation

        tables = read_evaluation(self._scores_folder)
        chart = froc_chart([("", tables)]) or size_chart(tables)
        return Figure() if chart is None else chart.figure

    def predictor(self, **settings: Any) -> "Predictor":
        """Load the trained model of this run to predict scans.

        Args:
            settings: The keyword arguments of `Predictor`.

        Raises:
            BundleError: If the run has no bundle, or it cannot be used.
        """
        from lesionseg.inference.predictor import Predictor

        return Predictor(self.folder, **settings)

    def report(self, output: StrPath, **settings: Any) -> Path:
        """Write the report on the scores of this folder, and return the path of the page.

        Args:
            output: The folder of the report.
            settings: Settings of `lesionseg report`, written as for `train`.
        """
        return report(self.folder, output, **settings)

    def _repr_html_(self) -> str:
        """Return the table of scores as HTML. Jupyter calls this method to display a `Run`."""
        from lesionseg.evaluation.scores import scores_table

        _, *rows = scores_table({"": self.scores})  # the first row has the names of the columns
        lines = [f"<tr><td>{escape(name)}</td><td>{escape(cell)}</td></tr>" for name, cell in rows]
        return f"<table><caption>{escape(str(self.folder))}</caption>{''.join(lines)}</table>"


def prepare(root: StrPath, *, progress: bool = False, **settings: Any) -> "Plan | CheckOutcome":
    """Plan and cache the cases of a folder, as `lesionseg prepare data.root=root` does.

    Args:
        root: The dataset's folder.
        progress: Draw progress bars on the terminal.
        settings: The settings of the command by name, written as for `train`.

    Returns:
        The plan, or with `check=True` the findings.

    Raises:
        ConfigError: If a key or value is wrong.
        DatasetError: If the dataset cannot be used. With `check=True`, faults of cases are findings
            instead.
    """
    from lesionseg.pipeline.prepare import PrepareOutcome

    outcome = _call("prepare", {"data.root": root, **settings}, progress)
    return outcome.plan if isinstance(outcome, PrepareOutcome) else outcome


def train(root: StrPath, *, progress: bool = False, **settings: Any) -> Run:
    """Train on a folder of scans, as `lesionseg train data.root=root` does.

    Args:
        root: The dataset's folder.
        progress: Draw progress bars on the terminal.
        settings: As on the command line: `loss="focal"`, and `trainer__max_minutes=5` for
            `trainer.max_minutes=5`, or `trainer={"max_minutes": 5}` for a section. `lesionseg train
            --help` lists all of them.

    Returns:
        The results on the validation cases, with `data__fold="all"` on the out-of-fold cases. Its
        property `test` has those on the test cases.

    Raises:
        ConfigError: If a key or value is wrong; the message names the nearest key.
        DatasetError: If the dataset cannot be used; the message lists the bad files, at most 100.
        TrainingError: If the training diverges, or if it cannot continue.
    """
    return Run(_call("train", {"data.root": root, **settings}, progress).run)


def predict(
    bundle: StrPath, input: StrPath, output: StrPath, *, progress: bool = False, **settings: Any
) -> "DataFrame":
    """Predict scans into a folder, as `lesionseg predict` does.

    Args:
        bundle: A run directory, a bundle, or an nnU-Net model folder.
        input: A scan or a folder of scans.
        output: The folder of the results.
        progress: Draw a progress bar on the terminal.
        settings: The settings of the command by name, written as for `train`.

    Returns:
        A row per case, as in `predictions.csv`, or in the table of the shard. The column `status`
        is `failed` for a case that failed, and `message` is the reason.

    Raises:
        BundleError: If the bundle cannot be used.
        ReadError: If the bundle does not exist.
        ConfigError: If a key or value is wrong.
        DatasetError: If the input has no scan.
        OutputError: If the results cannot be written.
    """
    from lesionseg.evaluation.tables import read_table

    main_settings = {"bundle": bundle, "input": input, "output": output}
    outcome = _call("predict", main_settings | settings, progress)
    # if the output is a URL, `folder` is its local copy
    table: Path = outcome.folder / outcome.table
    if not outcome.rows and not table.is_file():  # a shard without scans
        from pandas import DataFrame

        from lesionseg.io.results.row import CaseRow

        return DataFrame(columns=CaseRow.columns())
    return read_table(table)


def evaluate(
    reference: StrPath,
    prediction: StrPath,
    output: StrPath,
    *,
    progress: bool = False,
    **settings: Any,
) -> Run:
    """Score masks or candidates against references, as `lesionseg evaluate` does.

    Args:
        reference: A dataset, or a folder of masks.
        prediction: The folder of predictions, named by case.
        output: The folder of scores and tables.
        progress: Draw a progress bar on the terminal.
        settings: The settings of the command by name, written as for `train`.

    Returns:
        The scores and tables.

    Raises:
        ConfigError: If a key or value is wrong.
        DatasetError: If there is no case, or none can be scored.
    """
    main_settings = {"reference": reference, "prediction": prediction, "output": output}
    _call("evaluate", main_settings | settings, progress)
    return Run(output)


def follow(
    before: StrPath | None = None,
    after: StrPath | None = None,
    output: StrPath | None = None,
    *,
    progress: bool = False,
    **settings: Any,
) -> "DataFrame":
    """Compare the lesions of two visits, as `lesionseg follow` does.

    Args:
        before: The folder of masks of the earlier visit, named by case. Leave it and `after` out
            for a table of visits, the setting `visits`.
        after: The folder of masks of the later visit, with the same names.
        output: The folder of tables and the page. It must be given.
        progress: Draw a progress bar on the terminal.
        settings: The settings of the command by name, written as for `train`.

    Returns:
        A row per lesion, as in `changes.csv`; none if the masks are empty.

    Raises:
        ConfigError: If a key or value is wrong or missing.
        DatasetError: If the folders have no case in common, or no pair can be compared.
        LesionsegError: If there is only one pair and it cannot be compared.
    """
    from lesionseg.evaluation.tables import read_table

    folders = {"before": before, "after": after, "output": output}
    main_settings = {name: folder for name, folder in folders.items() if folder is not None}
    return read_table(_call("follow", main_settings | settings, progress).output / "changes.csv")


def report(
    scores: StrPath | None, output: StrPath, *, progress: bool = False, **settings: Any
) -> Path:
    """Write a report on scores as a page, as `lesionseg report` does.

    With the extra `pdf`, the report is also written as a PDF.

    Args:
        scores: The output of `evaluate`, or a run directory. None with `predictions`, an output of
            `predict`, for the month page.
        output: The folder of the page.
        progress: Draw a progress bar on the terminal.
        settings: The settings of the command by name, written as for `train`.

    Returns:
        The path of `report.html`, or of `month.html`.

    Raises:
        ConfigError: If a key or value is wrong.
        DatasetError: If the folder does not exist, is empty or, of `predictions`, has no results.
        ReadError: If `scores` has no `scores.json`.
    """
    result: Path = _call("report", {"scores": scores, "output": output, **settings}, progress).page
    return result


def _call(command: str, settings: Mapping[str, Any], progress: bool) -> Any:
    """Run a command with settings given in Python, and return its outcome.

    Hydra, which is slow to import, is used only for an experiment or an option of the group `data`.

    Args:
        command: The name of the command.
        settings: The settings by key. In a key, `__` means a dot.
        progress: True draws progress bars. Otherwise nothing is printed.
    """
    # `trainer__max_steps=9`, because a dot cannot be part of a Python keyword
    values = {key.replace("__", "."): value for key, value in settings.items()}
    if values.get("experiment", "") is None:  # None is the default, and names no file
        del values["experiment"]
    options = chosen_options(command, values)
    composed = None
    if {"experiment", "data"} & options.keys():  # only Hydra can read the files of these groups
        hydra_settings = options | {key: v for key, v in values.items() if key.startswith("hydra.")}
        # the remaining settings in `values` are applied to the composed ones
        composed = compose_plain(
            command, [f"{k}={override_text(v)}" for k, v in hydra_settings.items()]
        )
        values = {key: value for key, value in values.items() if key not in hydra_settings}
    cfg = settings_of(command, values, composed)
    with progress_bars() if progress else nullcontext():
        return run_recipe(command, cfg)
