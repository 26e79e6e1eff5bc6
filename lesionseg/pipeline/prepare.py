"""`prepare`: read and check every case, plan, and fill the cache."""

import logging
from dataclasses import dataclass
from pathlib import Path

from lesionseg.config import PrepareConfig
from lesionseg.errors import count
from lesionseg.io.files import locks, write_text
from lesionseg.pipeline.check import CheckOutcome, check_dataset
from lesionseg.pipeline.dataset import facts_folder, open_dataset, take_survey
from lesionseg.pipeline.learning import decide, prepare_cases
from lesionseg.pipeline.run_dir import check_config, default_run_dir, save_config

log = logging.getLogger(__name__)

PAGE = "dataset_report.html"
NOT_TRIED = (
    "estimated; no step was tried. On a GPU train and tune try two first, and may go on with "
    "fewer or smaller tiles"
)


@dataclass(frozen=True)
class PrepareOutcome:
    """What `prepare` decided, a sentence a line."""

    lines: tuple[str, ...]

    def summary(self) -> list[str]:
        """What to print."""
        return list(self.lines)


@locks("run_dir")
def prepare(cfg: PrepareConfig) -> PrepareOutcome | CheckOutcome:
    """Prepare a dataset for training, or only `check` it: list every problem, and write a page."""
    name = "check" if cfg.check else cfg.model.architecture
    run = Path(cfg.run_dir or default_run_dir(cfg.data.root, name))
    if cfg.check:
        dataset = open_dataset(cfg.data, lenient=True)
        return check_dataset(dataset, run / PAGE, identifiers=cfg.identifiers)
    config = {"command": "prepare", **cfg.plain()}
    check_config(run, config)
    survey = take_survey(cfg.data, cfg.seed, facts_folder(cfg.data, run))
    plan = decide(survey, cfg, run)
    before = plan.reasons.get("memory", "").removesuffix(NOT_TRIED).removesuffix("; ")
    memory = "; ".join(filter(None, (before, NOT_TRIED)))
    plan = plan.with_(reasons={**plan.reasons, "memory": memory})
    write_text(run / "plan.json", plan.to_json())
    save_config(run, config)
    if cfg.run_dir is None:  # its name holds the time: the same command would begin again
        log.info("Results go to %s; run_dir=%s resumes it.", run, run)
    cases = prepare_cases(survey, plan, cfg.data, run)
    lines = [f"{name}: {reason}" for name, reason in plan.reasons.items()]
    lines.append(f"Plan:    {run / 'plan.json'}; {count(len(cases), 'training case')} prepared")
    same = "" if cfg.run_dir is None else f" run_dir={run.parent / 'NAME'}"  # beside the cache
    lines.append(f"Next:    python scripts/train.py data.root={cfg.data.root}{same}")
    return PrepareOutcome(tuple(lines))
