"""The meta-gradient benchmark: all compute the same, what is wrong is said, and its figures are right."""

import importlib
import json
import mmap
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parent.parent / "jobs" / "benchmarks"
OURS_AND_BY_HAND = ["distmeta", "by hand", "by hand, bucketed"]
LIBRARIES = ["higher", "torchopt", "betty"]
TINY = ["--shots", "3", "--lengths", "natural", "--tasks", "2", "--rounds", "1", "--inner-steps", "2", "--layers", "1"]
TINY += ["--width", "64", "--vocabulary", "200"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def benchmark(monkeypatch):
    """The entry point as a module; it finds its contestants beside itself, as a script does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("meta")


@pytest.fixture
def peers(benchmark):
    return importlib.import_module("peers")


@pytest.fixture
def work_module(benchmark):
    return importlib.import_module("peers.work")


def rows_of(folder: Path) -> list[dict]:
    return json.loads((folder / "benchmark.json").read_text())["rows"]


@pytest.mark.slow  # of the parts each has a test of its own
def test_all_workloads_end_to_end(benchmark, tmp_path, capsys):
    arguments = [*TINY, "--skip-memory", "--contestants", *OURS_AND_BY_HAND, "--output", str(tmp_path)]
    assert benchmark.main(arguments) == 0
    rows = rows_of(tmp_path)
    assert [(row["workload"], row["contestant"]) for row in rows] == [
        (workload, name)
        for workload in ("fomaml/all", "fomaml/lora", "fomaml/head", "anil", "maml/all")
        for name in OURS_AND_BY_HAND
    ]
    for row in rows:
        assert row["gradient_error"] < 1e-5
        assert not row["wrong"]
        assert row["tasks_per_second"] == pytest.approx(2 / row["median_seconds"])
        assert row["share"] > 0
        assert row["contestant"] != "by hand" or row["ratio"] == 1
    assert len({round(row["query_loss"], 5) for row in rows if row["workload"] == "fomaml/all"}) == 1
    table = (tmp_path / "benchmark.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("| by hand, bucketed |") == 5
    assert "</svg>" in (tmp_path / "benchmark.svg").read_text()


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_libraries_compute_the_same(benchmark, tmp_path, name):
    pytest.importorskip(name)
    work = ["--workloads", "fomaml/all", "maml/all", "--contestants", name]
    assert benchmark.main([*TINY, *work, "--skip-memory", "--output", str(tmp_path)]) == 0
    rows = rows_of(tmp_path)
    assert [row["contestant"] for row in rows] == [name, name]
    assert max(row["gradient_error"] for row in rows) < 1e-5
    assert rows[0]["ratio"] is None


def test_first_order_is_not_second_order(work_module, peers):
    """Or the check against the reference would pass whatever a contestant does."""
    work = make_work(work_module, "maml/all")
    weights, tasks = work_module.new_weights(work, 0), draw(work_module, work)
    first = peers.load("by hand")(replace(work, workload=work_module.WORKLOADS["fomaml/all"]))(weights, tasks)
    second = peers.load("by hand")(work)(weights, tasks)
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.allclose(first.gradients[name], second.gradients[name], rtol=1e-2)


@pytest.mark.parametrize("spoil", ["scaled", "missing", "not finite"])
def test_a_wrong_gradient_is_shown_as_wrong(benchmark, tmp_path, monkeypatch, capsys, spoil):
    module = importlib.import_module("peers.by_hand_bucketed")
    make = module.make

    def make_wrong(work):
        def run(weights, tasks):
            outcome = make(work)(weights, tasks)
            gradients = dict(outcome.gradients)
            name = "embeddings.LayerNorm.weight"
            if spoil == "missing":
                del gradients[name]
            else:
                gradients[name] = gradients[name] * (1.1 if spoil == "scaled" else torch.nan)
            return replace(outcome, gradients=gradients)

        return run

    monkeypatch.setattr(module, "make", make_wrong)
    arguments = [*TINY, "--skip-memory", "--workloads", "fomaml/all", "--contestants", "by hand", "by hand, bucketed"]
    assert benchmark.main([*arguments, "--output", str(tmp_path)]) == 1
    assert [row["wrong"] for row in rows_of(tmp_path)] == [False, True]
    lines = [line for line in capsys.readouterr().out.splitlines() if "WRONG" in line]
    assert len(lines) == 1
    assert "by hand, bucketed" in lines[0]


def test_who_is_not_installed_or_fails_is_left_out_with_a_line(benchmark, tmp_path, monkeypatch, capsys):
    for name in ("higher", "betty.configs"):  # what the two files import first
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, f"peers.with_{name.split('.')[0]}", raising=False)
    module = importlib.import_module("peers.by_hand_bucketed")

    def fail(work):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(module, "make", fail)
    contestants = ["--contestants", "higher", "betty", "by hand", "by hand, bucketed"]
    work = ["--workloads", "fomaml/all", "--skip-memory", "--output", str(tmp_path)]
    assert benchmark.main([*TINY, *contestants, *work]) == 0
    assert [row["contestant"] for row in rows_of(tmp_path)] == ["by hand"]
    out = capsys.readouterr().out
    assert "higher is left out, higher is not installed: pip install 'distmeta[benchmark]'" in out
    assert "betty is left out, betty is not installed: pip install 'pip<24.1' && " in out
    assert "by hand, bucketed failed on fomaml/all: RuntimeError: first line\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "argument --rounds: '0' is not a whole number of at least 1"),
        (["--shots", "many"], "argument --shots: 'many' is not a whole number of at least 1"),
        (["--workloads", "maml/none"], "argument --workloads: invalid choice: 'maml/none'"),
        (["--contestants", "nobody"], "argument --contestants: invalid choice: 'nobody'"),
        (["--width", "100"], "argument --width: 100 is not a multiple of 64"),
        (["--vocabulary", "20"], "argument --vocabulary: 20 is less than 100"),
    ],
)
def test_a_bad_option_is_one_line(benchmark, capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        benchmark.main(arguments)
    error = capsys.readouterr().err
    assert raised.value.code == 2
    assert message in error
    assert error.count("\n") == 1


def make_work(work_module, workload: str, **changes):
    work = work_module.Work(
        work_module.WORKLOADS[workload],
        work_module.Shape(1, 64, 200),
        inner_lr=0.05,
        inner_steps=2,
        precision="fp32",
        device=torch.device("cpu"),
    )
    return replace(work, **changes)


def draw(work_module, work, lengths: str = "natural"):
    return work_module.draw_tasks(2, 3, 5, lengths, work.shape, 0, work.device)


@pytest.mark.parametrize(
    ("name", "workload"),
    [(name, "fomaml/lora") for name in OURS_AND_BY_HAND]
    + [(name, work) for name in [*OURS_AND_BY_HAND, *LIBRARIES] for work in ("fomaml/all", "maml/all")],
)
def test_nobody_changes_what_all_are_given_and_a_second_turn_is_like_the_first(work_module, peers, name, workload):
    if name in LIBRARIES:
        pytest.importorskip(name)
    work = make_work(work_module, workload)
    contestant = peers.load(name)(work)
    weights = work_module.new_weights(work, 0)
    before = {key: value.clone() for key, value in weights.items()}
    first, second = contestant(weights, draw(work_module, work)), contestant(weights, draw(work_module, work))
    assert all(torch.equal(weights[key], before[key]) for key in before)
    assert first.query_loss == second.query_loss
    assert all(torch.equal(value, second.gradients[key]) for key, value in first.gradients.items())


def test_bf16_is_near_and_no_cast_outlives_an_update(work_module, peers):
    """A stale cast of a weight that is updated in place would be off by much more than rounding is."""
    work = make_work(work_module, "fomaml/all", inner_lr=0.5)
    weights, tasks = work_module.new_weights(work, 0), draw(work_module, work)
    exact = peers.load("by hand")(work)(weights, tasks)
    rounded = peers.load("by hand")(replace(work, precision="bf16"))(weights, tasks)
    meta = importlib.import_module("meta")
    assert 1e-5 < meta.gradient_error(rounded.gradients, exact.gradients) < 0.05


@pytest.mark.parametrize("workload", ["fomaml/all", "fomaml/lora", "fomaml/head", "anil", "maml/all"])
def test_needed_operations_are_those_that_the_loop_by_hand_does(work_module, peers, workload):
    """On equal lengths, without padding; the loop also does the first step's backward pass, which a zero head makes
    needless, so that it does in n steps what n + 1 need."""
    matrix_product = importlib.import_module("peers.matrix_product")
    work = make_work(work_module, workload, shape=work_module.Shape(2, 256, 200))
    tasks = draw(work_module, work, "equal")
    counter = FlopCounterMode(display=False)
    with counter:
        peers.load("by hand")(work)(work_module.new_weights(work, 0), tasks)
    needed = matrix_product.needed(work.workload, work.shape, tasks, work.inner_steps + 1)
    assert needed.whole == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert 0 < needed.inner < needed.whole


def test_natural_lengths(work_module):
    lengths = torch.arange(work_module.SHORTEST, work_module.LONGEST + 1).double()
    probabilities = torch.from_numpy(work_module.natural_lengths())
    assert probabilities.sum() == pytest.approx(1)
    assert lengths @ probabilities == pytest.approx(20)
    work = make_work(work_module, "fomaml/all")
    for batch in (task.support for task in draw(work_module, work, "equal")):
        assert batch.input_ids.shape == (15, 20)
        assert batch.num_tokens == 300


def test_peak_memory(benchmark, tmp_path, monkeypatch, capsys):
    """Of memory that is taken and given back before the measurement nothing is seen."""

    def take(megabytes: int):
        # From the system itself: the allocator may have as much at hand.
        return lambda weights, tasks: torch.frombuffer(mmap.mmap(-1, megabytes * 2**20), dtype=torch.uint8).fill_(1)

    take(256)({}, [])
    peak = benchmark.peak_memory(take(64), {"weight": torch.zeros(1)}, [[]])
    if peak is None:
        pytest.skip("the system does not say")
    assert 60 * 2**20 < peak < 100 * 2**20

    def run_here(command, **_):
        capsys.readouterr()
        status = benchmark.main(command[2:])
        return SimpleNamespace(returncode=status, stdout=capsys.readouterr().out, stderr="")

    platform.processor()  # which Python asks another process once
    monkeypatch.setattr(subprocess, "run", run_here)
    monkeypatch.setattr(benchmark, "peak_memory", lambda contestant, weights, rounds: len(rounds[0]) * len(weights))
    arguments = [*TINY, "--workloads", "fomaml/lora", "--contestants", "by hand", "--output", str(tmp_path)]
    assert benchmark.main(arguments) == 0
    assert [row["peak_bytes"] for row in rows_of(tmp_path)] == [2 * 25]  # a block of 16 tensors, embeddings 5, LoRA 4
