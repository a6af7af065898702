"""Worker processes in one process group, started once, that run one function after another."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distmeta.engine.deepspeed_engine import environment


class World:
    """Worker processes in one process group, that run functions one after the other, all of them the same."""

    def __init__(self, size: int, folder: Path) -> None:
        # What takes seconds to import is imported once, and the workers are forked from there.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["distmeta.train.loop", "deepspeed.runtime.zero.muon.muon_optimizer"])
        self.folder = folder
        self._stuck = False
        self._tasks = [context.Queue() for _ in range(size)]
        self._results = context.Queue()
        self._processes = [
            context.Process(target=_work, args=(rank, size, folder, self._tasks[rank], self._results), daemon=True)
            for rank in range(size)
        ]
        with environment(DS_ACCELERATOR="cpu"):  # DeepSpeed asks when the forkserver imports it
            for process in self._processes:
                process.start()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function` on every worker; returns what it returned on rank 0."""
        assert not self._stuck, "a worker did not come back from the function before"
        self._stuck = True
        for queue in self._tasks:
            queue.put((function, arguments))
        results = dict(self._results.get(timeout=300) for _ in self._processes)
        self._stuck = False
        failures = [result for result in results.values() if isinstance(result, Exception)]
        if failures:
            raise failures[0]
        return results[0]

    def output(self) -> str:
        """All that the workers have printed."""
        return "".join(file.read_text() for file in sorted(self.folder.glob("output-*")))

    def close(self) -> None:
        """Ends the processes."""
        for queue in self._tasks:
            queue.put(None)
        for process in self._processes:
            process.join(timeout=20)
            process.kill()


@contextmanager
def worlds_of(folder: Path, *sizes: int) -> Iterator[dict[int, World]]:
    """A world of each size, that ends with the context."""
    made = {}
    for size in sizes:
        (folder / str(size)).mkdir()
        made[size] = World(size, folder / str(size))
    yield made
    for world in made.values():
        world.close()


def _work(rank: int, size: int, folder: Path, tasks: Any, results: Any) -> None:
    with (folder / f"output-{rank}").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    torch.set_num_threads(1)
    # A worker on its own leaves it to the engine.
    if size > 1:
        rendezvous = f"file://{folder}/rendezvous"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    while (task := tasks.get()) is not None:
        function, arguments = task
        try:
            results.put((rank, function(*arguments)))
        except Exception as error:
            results.put((rank, error))
