"""What the machines of all workers are used for, every few seconds of training."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed

EVERY = 5.0
"""Seconds between two looks: some hundred microseconds each."""
NAMES = ("memory_gib", "cpus", "device", "watts")
"""Memory of the process (on a GPU: its tensors), processors that are busy for it, share of the time in which its GPU is
busy, and the power that this one draws. Of what a machine does not tell nothing is written."""
GIB = 2**30


class MachineUse:
    """Looks at the process of one worker, and shares what it sees with the others.

    Args:
        device: of the worker.
        world_size: how many workers there are.
        is_main: whether it is this one that says when to look.
        clock: seconds, from any beginning.
    """

    def __init__(
        self, device: torch.device, world_size: int, *, is_main: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._device, self._world_size, self._is_main, self._clock = device, world_size, is_main, clock
        self._looked, self._cpu = clock(), time.process_time()

    @property
    def is_due(self) -> bool:
        """Whether all workers should look at the end of this step; on the main worker alone it may be true."""
        return self._is_main and self._clock() - self._looked >= EVERY

    def look(self) -> tuple[dict[str, float], float]:
        """Figures for a row of the metrics, `machine/NAME/lowest`, `mean` and `highest` over the workers, and the
        energy that their devices took since the last look, as far as they tell (J). Every worker calls it after the
        same step."""
        now, cpu = self._clock(), time.process_time()
        seconds = max(now - self._looked, 1e-9)
        found = {"memory_gib": memory(self._device) / GIB, "cpus": (cpu - self._cpu) / seconds}
        if self._device.type == "cuda":
            found |= _of_device(self._device)
        self._looked, self._cpu = now, cpu
        row: dict[str, float] = {}
        joules = 0.0
        for name, of_workers in zip(NAMES, self._of_workers(found), strict=True):
            told = [value for value in of_workers if value == value]
            if told:
                row |= {f"machine/{name}/lowest": min(told), f"machine/{name}/highest": max(told)}
                row[f"machine/{name}/mean"] = sum(told) / len(told)
            if name == "watts":
                joules = sum(told) * seconds
        return row, joules

    def _of_workers(self, found: dict[str, float]) -> list[list[float]]:
        """Of each name what each worker has seen; NaN where it has not."""
        own = torch.tensor([found.get(name, torch.nan) for name in NAMES], dtype=torch.float64, device=self._device)
        values = [own]
        if self._world_size > 1:
            values = [torch.empty_like(own) for _ in range(self._world_size)]
            torch.distributed.all_gather(values, own)
        return torch.stack(values).t().tolist()


def memory(device: torch.device) -> int:
    """What the process holds now: on a GPU its tensors, else all of it (bytes)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def _of_device(device: torch.device) -> dict[str, float]:
    """What NVML says of a GPU; nothing where it is not there."""
    try:
        return {"device": torch.cuda.utilization(device) / 100, "watts": torch.cuda.power_draw(device) / 1000}
    except (ImportError, RuntimeError):
        return {}
