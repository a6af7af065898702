"""Draws what `wandb leet` shows of a run that was recorded offline.

python .github/leet.py runs/demo .github/leet.svg     # tmux is the terminal
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH, HEIGHT = 150, 44
SHOWN = "worker_seconds|(cpus|memory_gib)/mean|tokens_per|grad_norm|outer_lr|query_(accuracy|loss)$"
"""A regular expression: the metrics that are drawn."""
VIEW = {"right_sidebar_visible": False, "metrics_grid": {"rows": 4, "cols": 2}}
"""Without the machine, of which W&B itself records nothing."""


def tmux(*arguments: str) -> str:
    """Asks a server of its own."""
    command = ["tmux", "-L", f"distmeta-{os.getpid()}", "-f", os.devnull, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def settled() -> str:
    """The screen with its colours, once it has stayed the same for two seconds."""
    before, screen = "", tmux("capture-pane", "-e", "-p")
    while screen != before or "Metrics" not in screen:
        time.sleep(2)
        before, screen = screen, tmux("capture-pane", "-e", "-p")
    return screen


def capture(run: Path) -> str:
    """The screen of the part of a run that trained: of a copy, since a view is kept beside what it shows."""
    part = min(run.glob("wandb/offline-run-*"))
    wandb = Path(sys.executable).with_name("wandb")
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(part, Path(scratch) / part.name)
        (Path(scratch) / "wandb-leet.json").write_text(json.dumps(VIEW))
        variables = [f"WANDB_CONFIG_DIR={scratch}", "TERM=xterm-256color", "COLORTERM=truecolor"]
        command = ["env", *variables, str(wandb), "leet", "run", f"{scratch}/{part.name}"]
        tmux("new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT), shlex.join(command))
        try:
            settled()
            tmux("send-keys", "/")
            tmux("send-keys", "-l", SHOWN)
            tmux("send-keys", "Enter")
            return settled()
        finally:
            tmux("kill-server")


def main() -> None:
    """Writes the picture."""
    run, picture = Path(sys.argv[1]), Path(sys.argv[2])
    console = Console(record=True, width=WIDTH, file=StringIO())
    console.print(Text.from_ansi(capture(run).rstrip("\n")), end="", no_wrap=True)
    picture.write_text(console.export_svg(title=f"wandb leet {run}/wandb"), encoding="utf-8")


if __name__ == "__main__":
    main()
