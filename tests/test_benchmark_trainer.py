"""The trainer benchmark: both sides compute the same, what differs is said, and its ratio is that of its figures."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.corpora import tiny_config, write_labelled_csv

LEARNS = ["meta.inner_lr=0.5"]  # what is learned in a few steps shows in the losses
FOLDER = Path(__file__).parent.parent / "jobs" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the script sets it, and the process of the tests shall not keep it
    return importlib.import_module("trainer")


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    tree = tiny_config(write_labelled_csv(tmp_path / "texts.csv"), engine={"zero_stage": 1, "gradient_clipping": 0.1})
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def found(benchmark):
    """Turns of a trainer that takes 1.25 times as long as the bare loop, and 2 times the processor time."""
    bare = benchmark.Turn([benchmark.Step(*times) for times in ((0.2, 0.15, 0.05), (0.4, 0.3, 0.1))], 0.3, [1.0, 0.9])
    ours = replace(
        bare, steps=[benchmark.Step(step.whole * 1.25, step.gradient, step.optimizer) for step in bare.steps]
    )
    ours = replace(ours, processor_seconds=0.6)
    return {"bare loop": [bare, bare], "distmeta pretrain": [ours, ours]}


def test_the_table(benchmark, found):
    _, _, bare, ours, _, ratio, by_processor = benchmark.table(found, tasks=3).splitlines()
    assert bare.split()[2:] == ["10.00", "0.3000", "0.2250", "0.0750", "0.0000", "0.3000"]
    assert ours.split()[2:] == ["8.00", "0.3750", "0.2250", "0.0750", "0.0750", "0.6000"]
    assert ratio == "distmeta pretrain has 0.800 of the bare loop's speed (by turns: 0.800, 0.800)"
    assert by_processor.endswith(": 0.500")


def test_losses_that_differ_are_seen(benchmark, found, monkeypatch, config_file, capsys):
    assert benchmark.loss_difference(found) == 0
    last = found["distmeta pretrain"][-1]
    found["distmeta pretrain"][-1] = replace(last, query_losses=[1.0, 0.99])
    assert benchmark.loss_difference(found) == pytest.approx(0.1)
    monkeypatch.setattr(benchmark, "compare", lambda *_: found)
    assert benchmark.main(["--config", str(config_file)]) == 1
    assert "WRONG: largest relative difference of query losses at the same step: 1.0e-01" in capsys.readouterr().out


def test_the_bare_loop_learns(benchmark, config_file, tmp_path):
    """A rate of nearly 0 shows what the losses of the same tasks are without outer steps."""
    before = torch.get_num_threads()
    losses = {}
    for rate in ("1e-9", "1e-2"):
        config = benchmark.benchmark_config(config_file, [*LEARNS, f"meta.outer_lr={rate}"], 6, tmp_path / "run")
        turn = benchmark.bare_loop(config)
        losses[rate] = turn.query_losses
        assert len(turn.steps) == 6
        assert all(abs(step.rest) < 1e-9 < min(step.gradient, step.optimizer) for step in turn.steps)
        assert turn.processor_seconds > 0
    torch.set_num_threads(before)
    assert losses["1e-2"][0] == losses["1e-9"][0]
    assert sum(losses["1e-2"]) < sum(losses["1e-9"]) - 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "meta.inner_rl=1"], "meta.inner_rl: unknown key; did you mean meta.inner_lr?"),
        (["--steps", "0"], "--turns and --steps must be at least 1"),
    ],
)
def test_a_bad_option_is_said(benchmark, capsys, arguments, message):
    try:
        status = benchmark.main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_end_to_end(benchmark, config_file, monkeypatch, capsys):
    """Ray, DeepSpeed and clipping change no loss, so the bare loop is the same computation."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    learns = ["--set", *LEARNS, "--set", "meta.outer_lr=1e-2"]
    assert benchmark.main(["--config", str(config_file), *learns, "--turns", "1", "--steps", "5"]) == 0
    assert "distmeta pretrain has " in capsys.readouterr().out
