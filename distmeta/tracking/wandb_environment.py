"""What the WANDB_* variables ask for, which counts where the configuration is silent."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from distmeta.errors import UserError, one_line
from distmeta.tracking.config import TrackingConfig

Mode = Literal["online", "offline", "disabled"]

MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
PASSED_ON = (
    "MODE",
    "DISABLED",
    "PROJECT",
    "ENTITY",
    "RUN_GROUP",
    "NAME",
    "TAGS",
    "NOTES",
    "JOB_TYPE",
    "DIR",
    "BASE_URL",
)
"""Of these, what the environment of the command says holds for its workers, wherever they are; no key is among them."""


def environment() -> dict[str, str]:
    """The variables that are passed on to workers, as they are set here; empty ones count as not set."""
    names = [f"WANDB_{name}" for name in PASSED_ON]
    variables = {name: os.environ[name] for name in names if os.environ.get(name, "").strip()}
    if "WANDB_DIR" in variables:
        variables["WANDB_DIR"] = str(Path(variables["WANDB_DIR"]).expanduser().absolute())
    return variables


def prepare_environment(passed_on: Mapping[str, str] | None = None) -> None:
    """Makes the variables such as W&B takes them, which fails altogether over an empty one; those that another process
    has passed on replace those that are here."""
    os.environ.update(passed_on or {})
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()]:
        del os.environ[name]
    if "WANDB_MODE" in os.environ:
        os.environ["WANDB_MODE"] = os.environ["WANDB_MODE"].strip().lower()


def mode_of_environment() -> Mode | None:
    """What WANDB_MODE and WANDB_DISABLED ask for; None where they are silent.

    Raises:
        UserError: nobody knows such a mode.
    """
    variables = environment()
    if variables.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on", "t", "y"):
        return "disabled"
    mode = variables.get("WANDB_MODE", "").strip().lower()
    if mode and mode not in MODES:
        raise UserError(one_line(f"WANDB_MODE: {mode} is none of {', '.join(MODES)}; set one of them, or unset it"))
    return MODES.get(mode)


def names(config: TrackingConfig, run_dir: Path) -> dict[str, Any]:
    """Under which names a run is in W&B, as `wandb.init` takes them. The run of a trial has its number at the end."""
    variables = environment()
    name = config.name or variables.get("WANDB_NAME")
    if name and (run_dir / "trial.json").exists():
        name = f"{name}-{run_dir.name}"
    kind = "trial" if (run_dir / "trial.json").exists() else "pretrain"
    return {
        "job_type": variables.get("WANDB_JOB_TYPE") or kind,
        "project": config.project or variables.get("WANDB_PROJECT") or "distmeta",
        "entity": config.entity or variables.get("WANDB_ENTITY"),
        "group": config.group or variables.get("WANDB_RUN_GROUP"),
        "name": name or run_dir.name,
    }


def tags_of_user(config: TrackingConfig) -> list[str]:
    """Those that a user asks for."""
    told = environment().get("WANDB_TAGS", "").split(",")
    return list(config.tags) or [tag.strip() for tag in told if tag.strip()]


def directory(run_dir: Path) -> Path:
    """The folder in which W&B keeps its own, `wandb`: WANDB_DIR, or the run directory."""
    return Path(environment().get("WANDB_DIR", run_dir))
