"""With what a run was made: Python, packages, and the commit of this project."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import distmeta

PACKAGES = (
    "torch",
    "ray",
    "deepspeed",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "pyarrow",
    "numpy",
    "scikit-learn",
    "wandb",
)


def environment() -> dict[str, str]:
    """Versions by name: `python`, `platform` (system and processor, no host), `distmeta`, each package that is
    installed, and `git_commit` (with `-dirty` where files were changed since) where the project runs from a checkout
    of its own.
    """
    found = {"platform": f"{platform.system()} {platform.machine()}"} | versions()
    commit = _git_commit(Path(distmeta.__file__).resolve().parents[1])
    if commit:
        found["git_commit"] = commit
    return found


def versions() -> dict[str, str]:
    """Versions by name: `python`, `distmeta`, and each package that is installed."""
    found = {"python": platform.python_version(), "distmeta": distmeta.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_commit(checkout: Path) -> str | None:
    """The commit of a checkout; None where `checkout` is not the top of one, or git is not there."""
    # A folder that merely stands inside another repository, as an installed package may, has no commit of its own.
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
