"""Runs whose number of workers follows the nodes of a real cluster: what they compute is that of a run left alone."""

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters import add_node, cluster_of, lose
from tests.commands import Running, read_rows
from tests.corpora import tiny_config, write_labelled_csv
from tests.training import assert_same, configure, prepared_corpus, run_steps
from tests.workers import worlds_of

TRAIN = {"outer_steps": 100_000, "checkpoint_every": 20, "num_workers": [1, 2]}
META = {"schedule": "constant", "warmup_ratio": 0.0, "meta_batch_size": 4}


def start(folder: Path, name: str, **train: Any) -> Running:
    """A run of more steps than it will be let do."""
    tree = tiny_config(folder / "texts.csv", train=TRAIN | train, meta=META, engine={"zero_stage": train.pop("stage", 0)})
    tree["corpus"]["directory"] = str(folder / "corpus")
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return Running(folder, f"{name}.yaml", name)


def wait_for(run: Running, pattern: str, within: float = 240) -> float:
    """Waits until the command has said so; returns how long it took (seconds)."""
    since = time.monotonic()
    while not re.search(pattern, run.log.read_text()):
        assert run.process.poll() is None, run.log.read_text()[-4000:]
        assert time.monotonic() - since < within, run.log.read_text()[-4000:]
        time.sleep(0.1)
    return time.monotonic() - since


def wait_for_more(run: Running, steps: int) -> float:
    """Waits for so many more outer steps; returns how long the first took (seconds)."""
    since, first = time.monotonic(), 0.0
    before = len(read_rows(run.run))
    while len(read_rows(run.run)) < before + steps:
        assert run.process.poll() is None, run.log.read_text()[-4000:]
        assert time.monotonic() - since < 240, run.log.read_text()[-4000:]
        if not first and len(read_rows(run.run)) > before:
            first = time.monotonic() - since
        time.sleep(0.05)
    return first


def end(run: Running) -> list[dict[str, Any]]:
    """Ends a run in good order; returns the rows of its steps."""
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 130, run.log.read_text()[-4000:]
    return read_rows(run.run)
