"""How fast a corpus is prepared, and in how much memory, at its size and at ten times that.

    python jobs/benchmarks/corpus.py FILE_OR_FOLDER... [--repeat 10] [--cpus 2] [--executor local|ray]

Prints, from one run: megabytes and tokens a second of every step, by the clock and by processor time; `tokenizers`' own
`encode_batch` on the same sentences in turns with ours; and the peak resident memory of every process at both sizes.
"""

import argparse
import gzip
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from distmeta.corpus.config import CorpusConfig, TokenizerConfig
from distmeta.corpus.encoder import Encoder
from distmeta.corpus.executor import Executor, LocalExecutor, RayExecutor, Result, Unit
from distmeta.corpus.manifest import Manifest
from distmeta.corpus.prepare import prepare
from distmeta.tasks.config import TasksConfig

TURNS = 5

Steps = dict[str, tuple[float, float]]
"""Seconds by the clock, and of this process's processor time, by step."""


class TimedExecutor:
    """Measures the steps that another executor does."""

    def __init__(self, executor: Executor) -> None:
        self.steps: dict[str, tuple[float, float]] = {}
        self._executor = executor

    def map(self, function: Callable[[Unit], Result], units: Sequence[Unit], description: str) -> Iterator[Result]:
        """Yield `function(unit)` in order."""
        wall, cpu = time.monotonic(), time.process_time()
        yield from self._executor.map(function, units, description)
        self.steps[description] = (time.monotonic() - wall, time.process_time() - cpu)


class MemorySampler(threading.Thread):
    """Samples the resident memory of this process and of all that it has started, Ray's workers among them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak: dict[str, int] = defaultdict(int)
        self._done = threading.Event()

    def run(self) -> None:
        """Sample ten times a second until `stop` is called."""
        this = psutil.Process()
        while not self._done.wait(0.1):
            for process in [this, *this.children(recursive=True)]:
                try:
                    kind = "driver" if process == this else process.name().split()[0]
                    memory = process.memory_info()
                except psutil.NoSuchProcess:
                    continue
                self._peak[kind] = max(self._peak[kind], memory.rss - memory.shared)

    def stop(self) -> dict[str, int]:
        """Return the largest sample of each kind of process in bytes, without memory that it shares with others."""
        self._done.set()
        self.join()
        return dict(self._peak)


def repeat_text(files: Sequence[Path], repeat: int, target: Path) -> None:
    """Write every line of the files `repeat` times, each time with another ending, so that none is a repeated row."""
    for number in range(repeat):
        for file in files:
            text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            ending = f" {number}".encode() if number else b""
            copy = target / f"{number}-{file.name.removesuffix('.gz')}"
            copy.write_bytes(b"".join(line + ending + b"\n" for line in text.splitlines()))


def measure(
    files: Sequence[Path], repeat: int, executor: Executor, folder: Path
) -> tuple[Manifest, Steps, dict[str, int]]:
    """Prepare the text `repeat` times over; return the manifest, seconds by step, and peak memory by process."""
    (folder / "in").mkdir(parents=True)
    repeat_text(files, repeat, folder / "in")
    timed = TimedExecutor(executor)
    sampler = MemorySampler()
    sampler.start()
    wall, cpu = time.monotonic(), time.process_time()
    manifest = prepare(
        folder / "out",
        CorpusConfig(sources=[str(folder / "in")]),
        TokenizerConfig(),
        TasksConfig(),
        tokenizer_source=None,
        max_length=128,
        executor=timed,
    )
    timed.steps["all, tokenizer training too"] = (time.monotonic() - wall, time.process_time() - cpu)
    return manifest, timed.steps, sampler.stop()


def compare_with_tokenizers(directory: Path) -> None:
    """Encode the same sentences by `encode_batch` and by our encoder, in turns, in one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    shards = sorted(directory.glob("work/records/*/*.parquet"))
    sentences = [
        each for shard in shards for record in pq.read_table(shard)["sentences"].to_pylist() for each in record
    ]
    size = sum(len(each.encode()) for each in sentences) / 1e6
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(TURNS):
        ours = Encoder(directory / "tokenizer")  # a new one remembers nothing
        start = time.process_time()
        theirs = [encoding.ids for encoding in ours.tokenizer.encode_batch(sentences, add_special_tokens=False)]
        times["tokenizers encode_batch"].append(time.process_time() - start)
        start = time.process_time()
        encoded = ours.encode(sentences)
        times["distmeta Encoder"].append(time.process_time() - start)
        assert encoded == theirs
        del encoded, theirs
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, seconds in medians.items():
        print(f"{name:32} {size / seconds:8.2f} MB a second of processor time (median of {TURNS} turns)")
    print(f"{'ratio':32} {medians['tokenizers encode_batch'] / medians['distmeta Encoder']:8.2f}\n")


def print_steps(manifest: Manifest, steps: Steps) -> None:
    """Print the speed of every step."""
    size = manifest.bytes / 1e6
    print(f"{size:.1f} MB of text, {manifest.tokens} tokens, {len(manifest.segment_parts)} segment parts")
    print(f"{'step':32} {'s':>8} {'MB/s':>8} {'tokens/s':>10} {'CPU s':>8} {'MB/CPU s':>9}")
    for name, (wall, cpu) in steps.items():
        speed = f"{size / cpu:9.2f}" if cpu > 0.01 else " " * 9
        tokens = manifest.tokens / max(wall, 1e-3)
        print(f"{name:32} {wall:8.2f} {size / max(wall, 1e-3):8.2f} {tokens:10.0f} {cpu:8.2f} {speed}")
    print(flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--executor", choices=["local", "ray"], default="ray")
    options = parser.parse_args()
    files = [file for source in options.sources for file in (sorted(source.iterdir()) if source.is_dir() else [source])]
    executor: Executor = LocalExecutor()
    if options.executor == "ray":
        import ray

        ray.init("local", num_cpus=options.cpus, include_dashboard=False, log_to_driver=False)
        executor = RayExecutor()
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in (1, options.repeat):
            manifest, steps, peaks[repeat] = measure(files, repeat, executor, Path(folder, str(repeat)))
            print_steps(manifest, steps)
        print(f"{'peak memory, MB':32} " + " ".join(f"{f'x{repeat}':>8}" for repeat in peaks))
        for kind in sorted(set().union(*peaks.values())):
            print(f"{kind:32} " + " ".join(f"{peak.get(kind, 0) / 1e6:8.0f}" for peak in peaks.values()))
        print()
        compare_with_tokenizers(Path(folder, "1", "out"))


if __name__ == "__main__":
    main()
