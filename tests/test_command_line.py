"""The command line: what it loads for a mistake, and what it says of itself."""

import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from distmeta.opening import open_run
from distmeta.sweep import command
from distmeta.sweep.command import open_sweep

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
    lines += ["plan --rate inf --set meta.inner_lr=1", "plan --memory inf --set meta.inner_lr=1"]
    lines += [f"{name} --run-dir {tmp_path / 'mistyped'} --resume" for name in ("pretrain", "sweep")]
    lines += ["pretrain --set meta.lm_warmup_steps=400", "pretrain --set corpus.sources=[nowhere.txt]"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="\n".join(lines), capture_output=True, text=True, check=True, cwd=tmp_path
    )
    told = done.stdout.splitlines()
    assert len(told) == len(lines), done.stdout
    assert [line for line in told if " |  | " not in line] == []
    assert all("| distmeta: " in line for line in told if "--set" in line or "--run-dir" in line)
    assert not list(tmp_path.iterdir())


def test_help_says_where_things_are_kept_and_what_holds_without_a_configuration() -> None:
    """A forecast and the run that it is of have to be in one directory."""
    from distmeta.cli import app

    without = {"config": "all defaults", "evaluate": "that of the run.", "export": "that of the run."}
    for each in app.registered_commands:
        assert each.callback is not None
        name, hints = each.callback.__name__, get_type_hints(each.callback, include_extras=True)
        if "config" in hints:
            said = hints["config"].__metadata__[0].help
            assert f"Without it, {without.get(name, 'that of the run in --run-dir, else all defaults')}" in said
        assert each.callback.__doc__


def test_a_forecast_is_kept_where_its_run_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def forecast(config: Any, sweep: Any, *_: Any) -> str:
        asked.append(sweep.path.relative_to(tmp_path))
        return ""

    monkeypatch.setattr(command, "_plan", forecast)
    for overrides in ([], ["sweep.num_trials=3"]):
        command.plan(None, overrides, None, rate=1.0, memory=None, say=print)
    (tmp_path / "my.yaml").touch()
    command.plan(Path("my.yaml"), [], None, rate=1.0, memory=None, say=print)
    assert asked == [Path("runs/default"), Path("runs/sweep"), Path("runs/my")]
    assert open_run(None, [], None)[1].path == tmp_path / asked[0]
    assert open_sweep(None, [], None)[1].path == tmp_path / asked[1]
