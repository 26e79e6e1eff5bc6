"""On the path of every rehearsal: packages that a bare GPU machine lacks cannot be imported."""

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

ABSENT = {
    "SimpleITK", "pydicom", "highdicom", "ray", "optuna", "fastapi", "uvicorn", "submitit",
    "mlflow", "wandb", "s3fs", "beartype", "alembic", "plotly",
}  # fmt: skip


class Absent(MetaPathFinder):
    """Refuses the packages of `ABSENT`, as if not installed; a stand-in is let through."""

    def find_spec(self, name: str, *_: object) -> None:
        """Raise `ModuleNotFoundError` for them, and leave all others to the next finder."""
        stands_in = any(Path(p, f"{name}.py").is_file() for p in sys.path if "stand_in" in p)
        if name.partition(".")[0] in ABSENT and not stands_in:
            raise ModuleNotFoundError(f"No module named {name!r} (a rehearsal)", name=name)


sys.meta_path.insert(0, Absent())
