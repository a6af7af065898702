"""The command line: what it loads for a mistake, and what it says of itself."""

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "ray", "deepspeed", "pyarrow", "sklearn", "datasets", "numpy", "wandb", "optuna")

SCRIPT = f"""
import contextlib, io, sys
from distmeta.cli import main

for line in sys.stdin:
    sys.argv = ["distmeta", *line.split()]
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        main()
    heavy = [name for name in {HEAVY} if name in sys.modules]
    print(line.strip(), "|", " ".join(heavy), "|", said.getvalue()[:40].splitlines()[0])
"""


def test_a_mistake_is_told_before_the_libraries_of_a_run_are_loaded(tmp_path: Path) -> None:
    """They take seconds of processor time: for a typo, and for what prints or checks the tree alone."""
    commands = ["prepare", "tasks", "pretrain", "plan", "sweep"]
    lines = ["config", "--help", *(f"{name} --help" for name in commands)]
    lines += [f"{name} --set meta.iner_lr=1" for name in ("config", *commands)]
    lines += [f"{name} --run-dir {tmp_path}" for name in ("evaluate", "export")]
    lines += ["pretrain --set meta.lm_warmup_steps=400", "pretrain --set corpus.sources=[nowhere.txt]"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="\n".join(lines), capture_output=True, text=True, check=True, cwd=tmp_path
    )
    told = done.stdout.splitlines()
    assert len(told) == len(lines), done.stdout
    assert [line for line in told if " |  | " not in line] == []
    assert all("| distmeta: " in line for line in told if "--set" in line or "--run-dir" in line)
    assert not list(tmp_path.iterdir())
