"""Runs whose number of workers follows the nodes of a real cluster: what they compute is that of a run left alone."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters import add_node, cluster_of, growing_cluster, lose
from tests.commands import Running, read_rows
from tests.corpora import tiny_config
from tests.training import assert_same, configure, prepared_corpus, run_steps
from tests.workers import worlds_of

TRAIN = {"outer_steps": 100_000, "checkpoint_every": 20, "num_workers": [1, 2]}
META = {"schedule": "constant", "warmup_ratio": 0.0, "meta_batch_size": 4}


def start(folder: Path, name: str, *, stage: int = 0, **train: Any) -> Running:
    """A run of more steps than it will be let do."""
    tree = tiny_config(folder / "texts.csv", train=TRAIN | train, meta=META, engine={"zero_stage": stage})
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


def assert_as_left_alone(folder: Path, rows: list[dict[str, Any]], stage: int, say: str) -> None:
    """The steps are each there once, and what they computed is what two workers compute that are left alone."""
    assert [row["outer_step"] for row in rows] == list(range(1, len(rows) + 1))
    train = TRAIN | {"outer_steps": len(rows), "num_workers": 2}
    config = configure(folder, train=train, meta=META, engine={"zero_stage": stage})
    (folder / "worlds").mkdir()
    with worlds_of(folder / "worlds", 2) as worlds:
        alone = run_steps(worlds[2], config, folder / "alone")
    keys = ("training/query_loss", "training/lm_loss")
    apart = max(abs(row[key] - other[key]) for row, other in zip(rows, alone, strict=True) for key in keys)
    print(f"{say}: losses differ by {apart:.1e} at most over {len(rows)} steps")
    assert_same(rows, alone, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_goes_on_smaller_without_a_node_and_grows_with_a_new_one(stage: int, tmp_path: Path):
    prepared_corpus(tmp_path)
    with cluster_of(1, 1) as cluster:
        run = start(tmp_path, "elastic", stage=stage)
        run.wait_for_step(30)
        (node,) = cluster.worker_nodes
        lose(cluster, node)
        lost = time.monotonic()
        wait_for(run, "going on with 1 worker instead of 2: a node is gone")
        before = len(read_rows(run.run))
        wait_for(run, "going on from the checkpoint of outer step")
        smaller = time.monotonic() - lost
        again = before - int(re.findall(r"from the checkpoint of outer step (\d+)", run.log.read_text())[-1])
        wait_for_more(run, 5)
        add_node(cluster)
        wait_for(run, "there is room for 2 workers now: leaving a checkpoint after this step")
        asked = time.monotonic()
        wait_for(run, "going on with 2 workers instead of 1: there is room again")
        left = len(read_rows(run.run))
        wait_for_more(run, 1)
        grown = time.monotonic() - asked
        wait_for_more(run, 10)
        rows = end(run)
    said = run.log.read_text()
    assert "train.max_failures" not in said  # a lost node is not counted
    assert again <= TRAIN["checkpoint_every"]
    # None is done twice to grow: its row would have been cut off and written again.
    newest = f"going on from the checkpoint of outer step {left}"
    assert newest not in said  # which is told where rows are missing
    assert_as_left_alone(
        tmp_path,
        rows,
        stage,
        f"ZeRO {stage}: a node lost, {again} steps again, going on after {smaller:.0f} s; grown in {grown:.0f} s",
    )


@pytest.mark.slow
def test_a_node_that_is_about_to_be_taken_away_costs_no_step(tmp_path: Path):
    prepared_corpus(tmp_path)
    with cluster_of(1, 1) as cluster:
        run = start(tmp_path, "elastic", stage=2, checkpoint_every=100_000)
        run.wait_for_step(30)
        (node,) = cluster.worker_nodes
        command = ["drain-node", "--address", cluster.address, "--node-id", node.node_id, "--reason-message", "spot"]
        options = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", "120"]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *command, *options], check=True)
        told = wait_for(run, "is about to be taken away: leaving a checkpoint after this step")
        wait_for(run, "going on with 1 worker instead of 2: a node is gone")
        gone_on = wait_for_more(run, 10)
        lose(cluster, node)
        wait_for_more(run, 10)
        rows = end(run)
    print(f"told after {told:.0f} s, going on after {gone_on:.0f} s")
    assert "does not answer" not in run.log.read_text()
    assert_as_left_alone(tmp_path, rows, 2, "a node announced")


@pytest.mark.slow
def test_a_wait_for_nodes_is_told_and_has_an_end(tmp_path: Path):
    prepared_corpus(tmp_path)
    with cluster_of(1, 1) as cluster:
        run = start(tmp_path, "fixed", num_workers=2, wait_for_nodes=15)
        run.wait_for_step(30)
        (node,) = cluster.worker_nodes
        lose(cluster, node)
        told = wait_for(run, r"waiting since \d+ s for room for 2 workers of 1 CPU, and the cluster has it for 1 now")
        assert told < 60
        assert run.wait() == 2
    assert "train.wait_for_nodes: 15 s have gone without room for 2 workers of 1 CPU" in run.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("v2", [False, True])
def test_a_run_waits_for_nodes_that_an_autoscaler_starts(v2: bool, tmp_path: Path):
    prepared_corpus(tmp_path)
    with growing_cluster(tmp_path, v2=v2, most=2):
        run = start(tmp_path, "grown", num_workers=2, outer_steps=5)
        told = wait_for(run, r"waiting since \d+ s for room for 2 workers of 1 CPU, and the cluster has it for 0 now")
        since = time.monotonic()
        run.wait_for_step(1)
        print(f"autoscaler v{1 + v2}: told after {told:.0f} s, first step {time.monotonic() - since:.0f} s later")
        assert run.wait() == 0, run.log.read_text()[-4000:]
        refused = start(tmp_path, "larger", num_workers=3)
        assert refused.wait() == 2
        line = "3 workers of 1 CPUs need 3, the cluster has 2 on 3 nodes and can grow to have room for 2: lower"
        assert line in refused.log.read_text()
    assert [row["outer_step"] for row in read_rows(run.run)] == [1, 2, 3, 4, 5]
