"""What a plan counts and measures: parameters, operations, time and money; and the whole against a run."""

import json
import multiprocessing
import queue
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from distmeta.config import Config, load_config
from distmeta.corpus.executor import LocalExecutor
from distmeta.errors import UserError
from distmeta.meta import Learner
from distmeta.opening import open_run
from distmeta.plan import asha_share, calibrate, forecast, make_plan, plan_table, short_run, sweep_totals
from distmeta.plan.memory import Sizes, network_sizes
from distmeta.plan.states import FLOAT
from distmeta.plan.table import shares
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.sweep.command import plan
from distmeta.train.work import WorkSource
from tests.commands import distmeta
from tests.corpora import TINY_MODEL, tiny_config, write_labelled_csv


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunDirectory]:
    folder = tmp_path_factory.mktemp("plan")
    tree = tiny_config(
        write_labelled_csv(folder / "texts.csv"),
        # As torch counts: no text is padded, as all are cut off at the same length, and attention is made of products.
        tokenizer={"vocab_size": 600, "max_length": 8},
        model={"config": TINY_MODEL, "attention": "eager"},
        engine={"computation": "plain"},  # the others leave out what the algorithm asks for and need not be done
        meta={"lm_warmup_steps": 4, "lm_weight": 1.0, "inner_lr": 0.05, "inner_steps": 2, "meta_batch_size": 4},
        train={"outer_steps": 50, "validate_every": 10, "checkpoint_every": 25, "num_workers": 2},
        tracking={"price_per_worker_hour": 3.6},
    )
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    config, run = open_run(folder / "run.yaml", [], folder / "run")
    prepare_with(LocalExecutor(), config, run, lambda _: None)
    return config, run


@pytest.mark.parametrize("adapt", ["all", "lora"])
@pytest.mark.parametrize("lm_weight", [0.0, 1.0])
def test_parameters_are_counted_as_the_network_has_them(
    opened: tuple[Config, RunDirectory], adapt: str, lm_weight: float
):
    config, run = opened[0].model_copy(deep=True), opened[1]
    config.meta.adapt, config.meta.lm_weight, config.meta.lm_warmup_steps = adapt, lm_weight, 0
    config.meta.freeze_lowest, config.meta.algorithm = 1, "leopard"
    setup = Setup(config, run)
    expected = Sizes.of(setup.network(), config)
    assert expected.trained < expected.parameters
    assert network_sizes(config, len(setup.tokenizer)) == expected
    # What is checked first of all never counts more.
    assert network_sizes(config, 1).parameters < expected.parameters


@pytest.mark.parametrize(
    ("settings", "within"),
    [
        ({"algorithm": "fomaml"}, 0.05),
        ({"algorithm": "maml"}, 0.05),
        # What is the lowest of two layers to get gradients needs none of its input, which is not looked at so closely.
        ({"algorithm": "maml", "freeze_lowest": 1, "adapt": "last_k"}, 0.2),
    ],
    ids=str,
)
def test_the_operations_of_a_step_are_those_that_torch_counts(
    opened: tuple[Config, RunDirectory], settings: dict[str, Any], within: float
):
    config, run = opened[0].model_copy(deep=True), opened[1]
    for key, value in settings.items():
        setattr(config.meta, key, value)
    plan = make_plan(config, run, rate=1e9, say=lambda _: None)
    setup = Setup(config, run)
    network = setup.network()
    learner = Learner(network, config.meta, "fp32", 0)
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    source = WorkSource(setup, torch.device("cpu"), 0, 1)
    steps = range(4, 6)
    counted = 0
    for step in steps:
        with FlopCounterMode(display=False) as counter:
            learner.gradient(parameters, source.take(step), config.meta.meta_batch_size)
        counted += counter.get_total_flops()
    source.close()
    print(settings, plan["flops_per_step"] / (counted / len(steps)))
    assert plan["flops_per_step"] == pytest.approx(counted / len(steps), rel=within)
    assert plan["flops"] == pytest.approx(46 * plan["flops_per_step"] + 4 * plan["flops_per_warmup_step"])
    assert plan["wall_seconds"] == pytest.approx(plan["flops"] / 2e9)
    assert plan["cost"] == pytest.approx(2 * plan["wall_seconds"] * 3.6 / 3600)
    assert all(len(line) <= 100 for line in plan_table(plan).splitlines())


def test_a_rate_needs_no_deepspeed_and_no_ray(opened: tuple[Config, RunDirectory]):
    """Case C4."""
    _, run = opened
    code = (
        "import sys; from pathlib import Path; from distmeta.sweep.command import plan; run = Path(sys.argv[1])\n"
        "plan(run.parent / 'run.yaml', [], run, rate=1e9, memory=None, say=print)\n"
        "print(sorted({'deepspeed', 'ray'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_a_plan_is_held_against_the_memory_that_is_told(
    opened: tuple[Config, RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And not against that of the machine that makes it, which may be far smaller."""
    config_file = opened[1].path.parent / "run.yaml"
    settings: dict[str, Any] = {"rate": 1e9, "say": lambda _: None}
    needed = make_plan(*opened, **settings)["peak_memory_bytes"]
    with pytest.raises(UserError, match="--memory gives it"):
        plan(config_file, [], tmp_path / "run", memory=0.9 * needed / 2**30, **settings)
    monkeypatch.setattr("distmeta.plan.memory.memory_of_a_worker", lambda config: (1.0, "this machine has"))
    with pytest.raises(UserError, match="this machine has"):
        plan(config_file, [], tmp_path / "run", memory=None, **settings)
    assert plan(config_file, [], tmp_path / "run", memory=2 * needed / 2**30, **settings)


def test_a_worker_that_has_ended_holds_no_memory():
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert short_run._most_memory(ended.pid) == 0


def test_a_sweep_takes_what_its_scheduler_leaves():
    plan: dict[str, Any] = {"wall_seconds": 100.0, "worker_seconds": 200.0, "flops": 5.0, "currency": "USD"}
    total = sweep_totals(plan, num_trials=9, concurrent=2, expected_share=0.5, price=36.0)
    assert (total["wall_seconds"], total["worker_seconds"], total["flops"]) == (250.0, 900.0, 22.5)
    assert total["cost"] == pytest.approx(9.0)
    assert total["run"] == plan


@pytest.mark.parametrize(
    ("max_steps", "grace", "factor", "share"),
    [(100, 100, 3, 1.0), (100, 200, 3, 1.0), (90, 10, 3, (10 + 20 / 3 + 60 / 9) / 90), (40, 20, 2, 0.75)],
)
def test_the_share_of_successive_halving(max_steps: int, grace: int, factor: int, share: float):
    assert asha_share(max_steps, grace, factor) == pytest.approx(share)


# The plan against what happens


@pytest.mark.slow
def test_steps_are_run_and_what_the_command_takes_is_added_up(opened: tuple[Config, RunDirectory]):
    config, run = opened[0].model_copy(deep=True), opened[1]
    largest = torch.ones(10**9 // FLOAT)  # a calibration is not to count what the process that asks for it once held
    del largest
    plan = make_plan(config, run, rate=None, say=lambda _: None)
    assert plan["peak_memory_bytes"] < 1e9 < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert plan["peak_memory_bytes"] == pytest.approx(sum(plan["memory"].values()))
    assert min(plan["memory"].values()) > 0 < plan["memory"]["without_model"] > 0.5 * plan["peak_memory_bytes"]
    parts = [plan[f"{part}_seconds"] for part in ("wall", "startup", "export", "evaluation")]
    assert min(parts) > 0
    assert plan["command_seconds"] == pytest.approx(sum(parts))
    assert plan["wall_seconds"] == pytest.approx(sum(plan["seconds_of"].values()))
    table = plan_table(plan)
    print(table)
    assert "without a model" in table
    assert "the whole command" in table
    assert all(len(line) <= 100 for line in table.splitlines())


def processes_of_a_calibration() -> list[multiprocessing.process.BaseProcess]:
    return [each for each in multiprocessing.active_children() if each.name.startswith("SpawnProcess")]


def test_a_calibration_that_takes_too_long_is_ended(
    opened: tuple[Config, RunDirectory], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(short_run, "PATIENCE", 0.5)
    said: list[str] = []
    with pytest.raises(UserError, match=r"not done in .* give --rate"):
        make_plan(*opened, rate=None, say=said.append)
    assert not processes_of_a_calibration()
    for known in ("parameters ", "operations ", "tasks of a step ", "memory of a worker "):
        assert f"\n{known}" in f"\n{said[-1]}"


def test_what_was_measured_till_then_is_a_forecast(
    opened: tuple[Config, RunDirectory], monkeypatch: pytest.MonkeyPatch
):
    """Here two steps with tasks were done in time, and nothing after them."""
    rows = [{"outer_step": 1, "time/step": 1.0, "cost/wall_seconds": 3.0}]
    rows += [
        {"outer_step": n, "time/step": 0.5, "cost/wall_seconds": 2.5 + n / 2, "training/query_loss": 1.0}
        for n in (2, 3)
    ]
    found = {"startup": 9.0, "memory_without_model": 4 * 10**8, "peak_memory": 6 * 10**8}
    monkeypatch.setattr(calibrate, "run_short", lambda *_: (found, rows))
    plan = make_plan(*opened, rate=None, say=lambda _: None)
    assert plan["unmeasured"] == ["checkpoints", "export", "evaluation"]
    assert plan["seconds_of"] == {"warm-up steps": 0, "steps with tasks": 23, "validations": 12, "checkpoints": 0}
    assert (plan["wall_seconds"], plan["command_seconds"], plan["peak_memory_bytes"]) == (35, 44, 6 * 10**8)
    assert "not in these        checkpoints, export, evaluation: not done in time" in plan_table(plan)


@pytest.mark.slow
def test_a_calibration_keeps_what_it_has_when_its_time_is_over(
    opened: tuple[Config, RunDirectory], monkeypatch: pytest.MonkeyPatch
):
    config = opened[0].model_copy(deep=True)
    config.evaluate.inner_steps = 10**9
    monkeypatch.setattr(short_run, "PATIENCE", 60.0)
    measured = calibrate.calibrate(config, opened[1])
    assert not processes_of_a_calibration()
    assert measured.unmeasured == ["export", "evaluation"]
    assert min(measured.task_step, measured.checkpoint or 0, measured.peak_memory or 0) > 0


def test_a_process_that_is_going_to_be_killed_leaves_no_semaphore_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Python would warn of it at the end of the command."""
    monkeypatch.setattr(short_run, "end_with_parent", lambda: None)
    monkeypatch.setattr(short_run, "_steps", lambda *_: list(tqdm(range(2))))
    monkeypatch.setattr(short_run, "_ending", lambda *_: {"lock": type(tqdm.get_lock()).__module__})
    results: queue.Queue[Any] = queue.Queue()
    before = tqdm.get_lock()
    try:
        short_run._worker(0, Config().model_dump(), str(tmp_path), 1, 0.0, results)
    finally:
        tqdm.set_lock(before)
    assert results.get() == {"lock": "_thread"}


def test_a_process_of_the_calibration_that_the_system_kills_is_told(opened: tuple[Config, RunDirectory]):
    def kill() -> None:
        while not (processes := processes_of_a_calibration()):
            time.sleep(0.05)
        processes[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match="was killed"):
        calibrate.calibrate(*opened)
    killer.join()
    assert not processes_of_a_calibration()


def test_baselines_are_in_the_time_of_the_command(opened: tuple[Config, RunDirectory]):
    config = opened[0].model_copy(deep=True)
    measured = calibrate.Calibration(
        warmup_step=0.0, task_step=0.5, validation=2.0, checkpoint=0.0, startup=9.0, export=1.0, first_episode=3.0,
        episode=1.0, fine_tuned_episode=4.0, similarity=7.0, steps=range(1), tasks_per_step=4,
        workers=1, memory_without_model=0, peak_memory=0,
    )  # fmt: skip
    alone = forecast._time(config, measured)
    assert alone["baseline_seconds"] == 0
    tuned = 4.0 * min(config.evaluate.fine_tuning_episodes, config.evaluate.episodes)
    evaluation = alone["evaluation_seconds"] - tuned
    assert evaluation == 3 + (config.evaluate.episodes - 1) + 2 * 7
    config.evaluate.language_model_baseline = config.evaluate.multitask_baseline = True
    both = forecast._time(config, measured)
    steps, all_of_it = alone["seconds_of"]["steps with tasks"], alone["wall_seconds"]
    assert both["baseline_seconds"] == steps + 9 + all_of_it + 9  # the multi-task baseline is validated, too
    assert both["evaluation_seconds"] == 2 * evaluation + tuned  # four networks where there were two
    assert both["command_seconds"] == alone["command_seconds"] + both["baseline_seconds"] + evaluation


def test_tasks_of_other_sizes_than_those_that_were_measured_are_in_the_time(opened: tuple[Config, RunDirectory]):
    config, run = opened[0].model_copy(deep=True), opened[1]
    measured = SimpleNamespace(steps=range(10, 13), tasks_per_step=4)
    assert forecast._beside_measured(Setup(config, run), measured) == (1.0, 1.0)  # type: ignore[arg-type]
    config.tasks.n_way, config.tasks.k_shot = [2, 3], [1, 8]
    setup = Setup(config, run)
    source = WorkSource(setup, torch.device("cpu"), 0, 1)
    tasks = [piece.task for step in range(4, 68) for piece in source.take(step) if piece.task]  # behind the warm-up
    source.close()
    tokens = [2 * task.support.num_tokens + task.query.num_tokens for task in tasks]
    longer, larger = forecast._beside_measured(setup, measured)  # type: ignore[arg-type]
    steps = [sum(tokens[4 * step - 16 : 4 * step - 12]) for step in range(10, 13)]
    assert longer == pytest.approx(4 * sum(tokens) / len(tokens) / sorted(steps)[1], rel=0.1)
    assert larger == pytest.approx(max(tokens) / max(tokens[24:36]))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_time_within_a_fifth_and_memory_within_a_tenth(workers: int, tmp_path: Path):
    smlmt = load_config(Path(__file__).parent.parent / "jobs" / "configs" / "smlmt.yaml")
    assert smlmt.train.outer_steps == 760
    config = Path(__file__).parent.parent / "jobs" / "configs" / "smlmt.yaml"
    options = ["meta.lm_warmup_steps=120", "train.outer_steps=160", "evaluate.episodes=5", "corpus.executor=local"]
    options += [f"train.num_workers={workers}", "train.validate_every=40", "tracking.wandb=offline"]
    arguments = ["--config", config, *(part for option in options for part in ("--set", option)), "--run-dir", "run"]
    distmeta("plan", *arguments, cwd=tmp_path)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    started = time.perf_counter()
    distmeta("pretrain", *arguments, cwd=tmp_path, timeout=600)
    taken = time.perf_counter() - started
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    print({key: (plan[key], summary[key]) for key in ("wall_seconds", "peak_memory_bytes", "flops")})
    print({key: plan[key] for key in ("command_seconds", "memory", "evaluation_seconds")}, f"command {taken:.0f} s")
    assert plan["wall_seconds"] == pytest.approx(summary["wall_seconds"], rel=0.2)
    assert plan["peak_memory_bytes"] == pytest.approx(summary["peak_memory_bytes"], rel=0.1)
    assert plan["flops"] == pytest.approx(summary["flops"], rel=0.1)


@pytest.mark.parametrize(
    ("tasks", "workers", "said"),
    [
        (4, 3, "2, 1, 1 for 3 workers in turn"),
        (4, 2, "2 for each of 2 workers"),
        (4, 1, "4 for the worker"),
        (100, 64, "2 for 36 of 64 workers and 1 for the others, in turn"),
    ],
)
def test_uneven_shares_of_the_tasks_are_said(tasks: int, workers: int, said: str) -> None:
    assert shares(tasks, workers) == said
    counts = Counter(index % workers for index in range(tasks))  # as train.work shares them out
    assert all(str(count) in said for count in counts.values())
