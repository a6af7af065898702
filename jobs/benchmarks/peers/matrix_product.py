"""What the machine's matrix product reaches on this model's shapes, and what of it a meta-gradient needs."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distmeta.compute.batch import TaskBatch, TokenBatch
from peers.work import LORA_MODULES, LORA_RANK, Shape, Workload

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHORTEST_SECONDS = 0.01
"""A product is repeated until a measurement takes this long."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations that the tasks' real tokens need, the head's few left out."""

    inner: float
    """Of the inner loops."""
    whole: float
    """Of the meta-gradient."""


def needed(workload: Workload, shape: Shape, tasks: Sequence[TaskBatch], inner_steps: int) -> Operations:
    """Multiplications and additions without which the meta-gradient cannot be had.

    A head of zeros sends no gradient into the encoder, so that the first step only needs the features, which are the
    second step's too. Nothing below the lowest adapter is differentiated. A second-order step needs three times what
    a first-order step does: each of its three products becomes two more on the way back.
    """
    later_steps = inner_steps - 1
    inner = whole = 0.0
    for task in tasks:
        support_forward, support_backward = _passes(workload, shape, task.support)
        query_forward, query_backward = _passes(workload, shape, task.query)
        if workload.adapt == "head":
            inner += support_forward
            whole += support_forward + (support_backward if workload.second_order else 0.0)
        else:
            steps = max(1, later_steps) * support_forward + later_steps * support_backward
            inner += steps
            if workload.second_order:
                steps = 3 * steps if later_steps else support_forward + support_backward
            whole += steps
        whole += query_forward + query_backward
    return Operations(inner, whole)


def _passes(workload: Workload, shape: Shape, batch: TokenBatch) -> tuple[float, float]:
    """Operations of a forward and of a backward pass."""
    width, layers, tokens = shape.width, shape.layers, batch.num_tokens
    lengths = batch.attention_mask.sum(1).double()
    linear = 2.0 * tokens * sum(count * a * b for count, a, b in _layers(shape))
    attention = 4.0 * width * float((lengths**2).sum())
    if workload.adapt != "lora":
        return layers * (linear + attention), layers * 2 * (linear + attention)
    factor = len(LORA_MODULES) * 2.0 * tokens * width * LORA_RANK  # of one of an adapter's two factors
    forward = layers * (linear + attention + 2 * factor)
    backward = layers * (linear + 2 * attention + 4 * factor)
    lowest = 3 * 2.0 * tokens * width * width + factor  # input gradients of the lowest layer's projections
    return forward, backward - lowest


def _layers(shape: Shape) -> list[tuple[int, int, int]]:
    """Number, input and output width of the linear layers of a block."""
    width = shape.width
    return [(4, width, width), (1, width, 4 * width), (1, 4 * width, width)]


class MatrixProducts:
    """The three products of each linear layer over `tokens` rows, forward, input gradient and weight gradient, in each
    precision; `rates` is called in turns with what it is compared with."""

    def __init__(self, shape: Shape, tokens: int, device: torch.device, seed: int) -> None:
        self._device = device
        self._turns = random.Random(seed)
        self._operations = 3 * 2.0 * tokens * sum(count * a * b for count, a, b in _layers(shape))
        numbers = torch.Generator(device="cpu").manual_seed(seed)

        def matrix(rows: int, columns: int, precision: str) -> torch.Tensor:
            return torch.randn(rows, columns, generator=numbers).to(device, DTYPES[precision])

        self._cases: list[tuple[str, int, torch.Tensor, torch.Tensor]] = []
        for precision in DTYPES:
            for count, width_in, width_out in _layers(shape):
                x, weight = matrix(tokens, width_in, precision), matrix(width_out, width_in, precision)
                gradient = matrix(tokens, width_out, precision)
                for left, right in ((x, weight.t()), (gradient, weight), (gradient.t(), x)):
                    self._cases.append((precision, count, left, right))
        self._repeats = [
            max(1, round(SHORTEST_SECONDS / min(self._seconds(case, 1) for _ in range(3))))
            for case in range(len(self._cases))
        ]

    def _seconds(self, case: int, repeat: int) -> float:
        _, _, left, right = self._cases[case]
        synchronize(self._device)
        started = time.perf_counter()
        for _ in range(repeat):
            left @ right
        synchronize(self._device)
        return (time.perf_counter() - started) / repeat

    def rates(self) -> dict[str, float]:
        """Operations a second by precision, all products taken together, in an order of its own each time."""
        seconds = dict.fromkeys(DTYPES, 0.0)
        for case in self._turns.sample(range(len(self._cases)), len(self._cases)):
            precision, count, _, _ = self._cases[case]
            seconds[precision] += count * self._seconds(case, self._repeats[case])
        return {precision: self._operations / total for precision, total in seconds.items()}


def synchronize(device: torch.device) -> None:
    """Waits until all that was queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
