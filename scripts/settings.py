"""Write docs/settings.md from the comments of conf/, as `make docs` does."""

from pathlib import Path

from lesionseg.cli.compose import groups
from lesionseg.cli.help import first_comment, setting_lines, summary
from lesionseg.config import COMMANDS, conf_dir


def settings_page() -> str:
    """Return the text of docs/settings.md: every command, group and option with its comments."""
    lines = [
        "# Every setting",
        "",
        "<!-- written by `make docs` from conf/*.yaml: change those -->",
        "",
        "This page lists the settings of every command. Write a setting as "
        "`key=value` after the command, and choose an option of a group with `group=option`: "
        "`python scripts/train.py data.root=DIR optim=sgd optim.lr=0.02`.",
        "",
        "- A key with `???` has no default: you must give it.",
        "- `null` means none, or that lesionseg decides; the comment says which.",
        "- A plus adds a further argument of a class: `loss=focal +loss.reduction=mean`, "
        "`+model.layout=nnunet`, or one of your own class, `+loss.power=3`.",
        "- An unknown key is an error that names the nearest known key.",
        "- `--cfg` prints the settings and stops.",
        "- `-i` and `-o` are short for `input=` and `output=`.",
        "",
        "`--config-dir DIR` adds your own options. `DIR/experiment/mine.yaml`, which begins with "
        "`# @package _global_`, is then `experiment=mine`. DIR may be a package: "
        "`pkg://package.conf`. Several folders may be given: `--config-dir A --config-dir B`.",
    ]
    used: dict[str, list[str]] = {}
    for command in COMMANDS:
        for group in groups(command):
            used.setdefault(group, []).append(command)
        named = ", ".join(f"[`{group}`](#group-{group})" for group in groups(command))
        about = summary(command) + (f" Groups: {named}." if named else "")
        lines += ["", f"## Command `{command}`", "", about]
        own = [line for line in setting_lines(conf_dir() / f"{command}.yaml") if line]
        lines += ["", "```yaml", *own, "```"] if own else []
    for group, commands in used.items():
        by = ", ".join(f"`{command}`" for command in commands)
        lines += ["", f"## Group `{group}`", "", f"Used by {by}."]
        for file in sorted((conf_dir() / group).glob("*.yaml")):
            if group == "experiment":  # a list of other groups' settings
                lines += ["", f"`experiment={file.stem}`: {first_comment(file)}"]
                continue
            text = file.read_text(encoding="utf-8").strip()
            lines += ["", "```yaml", f"# {group}={file.stem}", text, "```"]
    lines += ["", "Next: [training](training.md), or [inference](inference.md)."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    page.write_text(settings_page(), encoding="utf-8")
