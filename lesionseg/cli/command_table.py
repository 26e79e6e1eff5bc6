"""What can be asked for: the commands, what their help says, and which overrides hold free text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """What the help says of a command, and how its configuration is taken.

    `texts`: overrides that hold a path or other free text. `keeps_config`: its recipe takes the
    resolved configuration as `config`, to keep it with the results.
    """

    summary: str
    texts: tuple[str, ...]
    examples: tuple[str, str, str]
    keeps_config: bool = False


_TRAINING = (
    *("data.root", "data.group", "data.splits", "data.cache_dir", "data.local_dir", "run_dir"),
    "model.init_from",
)
_PAGE = ("report.study", "report.title", "report.name", "report.other_name")

COMMANDS: dict[str, Command] = {
    "train": Command(
        "from a folder of scans to a trained model, its scores, a report and a bundle",
        (*_TRAINING, *_PAGE, "logger.project", "logger.name", "logger.tracking_uri"),
        (
            "data.root=DIR",
            "data.root=DIR run_dir=runs/a loss=focal loss.gamma=2 trainer.max_minutes=20",
            "experiment=demo_mri",
        ),
        keeps_config=True,
    ),
    "prepare": Command(
        "read and check every case, plan, and fill the cache without training",
        _TRAINING,
        (
            "data.root=DIR check=true",
            "data.root=DIR run_dir=runs/a",
            "data.root=DIR 'data.group=(P[0-9]+)_'",
        ),
        keeps_config=True,
    ),
    "tune": Command(
        "the focal loss's α and γ, searched together; several processes may share a search",
        _TRAINING,
        (
            "data.root=DIR run_dir=runs/pair",
            "data.root=DIR run_dir=runs/pair loss=focal tune.n_trials=40 trainer.max_minutes=10",
            "data.root=DIR 'tune.alpha=[0.2,0.8]' 'tune.gamma=[1,3]'",
        ),
        keeps_config=True,
    ),
    "predict": Command(
        "masks and scored candidates for new scans, each in the scan's own geometry",
        ("bundle", "input", "output", "zones"),
        (
            "bundle=runs/a input=scans output=predictions",
            "bundle=runs/a/bundle input='scans/*.nii.gz' output=predictions inference=fast",
            "bundle=runs/a input=scan.nii.gz output=predictions operating_point=score:0.37",
        ),
    ),
    "evaluate": Command(
        "Dice, lesion recall by size and FROC of anybody's masks or candidates",
        (
            *("reference", "prediction", "output", "compare", "adjudication"),
            *("images", "columns", "groups", "zones"),
        ),
        (
            "reference=labels prediction=predictions output=scores",
            "reference=labels prediction=predictions output=scores 'groups=(P[0-9]+)_'",
            "reference=labels prediction=predictions output=scores evaluated_on=test",
        ),
    ),
    "follow": Command(
        "what became of each lesion between two visits: new, enlarged, stable, shrunk, gone",
        (
            *("before", "after", "output", "before_images", "after_images"),
            *("reference", "visits", "bundle", "predictions"),
        ),
        (
            "before=DIR after=DIR output=changes before_images=DIR after_images=DIR",
            "visits=visits.csv bundle=runs/a output=changes",
            "before=DIR after=DIR output=changes stable=[P1,P2] reference=new_lesions",
        ),
    ),
    "report": Command(
        "one page a clinician can read, from the tables that evaluate wrote",
        ("scores", "output", "images", "reference", "prediction", "compare", *_PAGE),
        (
            "scores=scores output=report",
            "scores=scores output=report images=scans reference=labels prediction=predictions",
            "scores=runs/a output=report images=DIR",
        ),
    ),
    "export": Command(
        "a bundle's network for other programs: ONNX, or MONAI's bundle",
        ("bundle", "output"),
        (
            "bundle=runs/a output=exported",
            "bundle=runs/a output=exported opset=20",
            "bundle=runs/a output=exported format=monai",
        ),
    ),
    "serve": Command(
        "a bundle behind HTTP: a page, a REST interface, and MONAI Label's for 3D Slicer",
        ("bundle",),
        (
            "bundle=runs/a",
            "bundle=runs/a port=8080 inference=fast",
            "bundle=runs/a host=0.0.0.0 max_upload_mb=200",
        ),
    ),
}
