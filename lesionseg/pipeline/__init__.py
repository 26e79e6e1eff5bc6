"""The recipes of the commands, one file each. A recipe calls the packages below in order."""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.pipeline.convert import select_on_validation as select_on_validation
    from lesionseg.pipeline.convert import write_own_bundle as write_own_bundle
    from lesionseg.pipeline.experiment import Experiment as Experiment
    from lesionseg.pipeline.log import align_columns as align_columns
    from lesionseg.pipeline.log import bar as bar
    from lesionseg.pipeline.log import command_line as command_line
    from lesionseg.pipeline.log import predict_command as predict_command
    from lesionseg.pipeline.outcome import Outcome as Outcome
    from lesionseg.pipeline.outcome import find_recipe as find_recipe
    from lesionseg.pipeline.output_lock import hold_lock as hold_lock
    from lesionseg.pipeline.planning import begin as begin
    from lesionseg.pipeline.predict_outputs import Outputs as Outputs
    from lesionseg.pipeline.prepare import prepare_cases as prepare_cases
    from lesionseg.pipeline.run_dir import default_run_dir as default_run_dir
    from lesionseg.pipeline.run_dir import loss_option as loss_option
    from lesionseg.pipeline.score_roles import recall_and_precision as recall_and_precision
    from lesionseg.pipeline.train_fold import train_network as train_network

_HOMES = {
    "Experiment": "experiment",
    "Outcome": "outcome",
    "Outputs": "predict_outputs",
    "align_columns": "log",
    "bar": "log",
    "begin": "planning",
    "command_line": "log",
    "default_run_dir": "run_dir",
    "find_recipe": "outcome",
    "hold_lock": "output_lock",
    "loss_option": "run_dir",
    "predict_command": "log",
    "prepare_cases": "prepare",
    "recall_and_precision": "score_roles",
    "select_on_validation": "convert",
    "train_network": "train_fold",
    "write_own_bundle": "convert",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
