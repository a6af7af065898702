"""What the tests of the engine share: a tiny model, its training by the engine, and the same by torch alone."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from distmeta.engine.config import EngineConfig
from distmeta.engine.deepspeed_engine import Engine
from distmeta.engine.state import EngineState
from distmeta.train.checkpoint_folder import CheckpointFolder
from distmeta.train.checkpoints import Checkpoints

CPU = torch.device("cpu")
STAGES = (0, 1, 2, 3)
WORLDS = (1, 2, 3)
TASKS = 6  # of an outer step, over all workers
STEPS = 6
HALFWAY = 3
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.1
CLIPPING = 1.0  # lies between the norms that occur

Tensors = dict[str, torch.Tensor]


class TinyModel(nn.Module):
    """Sizes that 2 and 3 workers cannot share evenly, a tied parameter and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 5)
        self.norm = nn.LayerNorm(5)
        self.linear = nn.Linear(5, 3)
        self.output = nn.Linear(5, 7)
        self.output.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)


def gradient(parameters: Tensors, step: int, rank: int, world_size: int) -> Tensors:
    """A worker's mean over its share of the tasks: another for every step and task, and for other weights."""
    total = {name: torch.zeros_like(p) for name, p in parameters.items() if name != "frozen"}
    for task in range(rank, TASKS, world_size):
        generator = torch.Generator().manual_seed(1000 * step + task)
        for name, sum_of_tasks in total.items():
            sum_of_tasks += torch.randn(sum_of_tasks.shape, generator=generator) + parameters[name]
    scale = 1.0 if step % 2 else 0.1  # clipped in every second step
    return {name: sum_of_tasks * scale * world_size / TASKS for name, sum_of_tasks in total.items()}


def train(
    engine: Engine, first: int, last: int, change: Callable[[Tensors, int, int], None] | None = None
) -> list[float]:
    """Outer steps `first` to `last`; returns the norms. `change` alters a worker's gradients, given step and rank."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    norms = []
    for step in range(first, last):
        with engine.full_parameters() as parameters:
            gradients = gradient(parameters, step, rank, world_size)
        if change is not None:
            change(gradients, step, rank)
        norms.append(engine.step(gradients, LEARNING_RATE))
    return norms


def make_engine(stage: int, clipping: float, state: EngineState | None = None, offload: bool = False) -> Engine:
    config = EngineConfig(zero_stage=stage, gradient_clipping=clipping, offload_optimizer=offload)
    return Engine(TinyModel(), config, weight_decay=WEIGHT_DECAY, device=CPU, state=state)


def save(engine: Engine, directory: Path, norms: list[float]) -> None:
    """As a run does: each worker writes its part."""
    rank, step = torch.distributed.get_rank(), engine.state().step
    to = CheckpointFolder.local(directory.parent, ending=f"-{directory.name}")
    checkpoints = Checkpoints(to, engine, rank, torch.distributed.get_world_size())
    checkpoints.begin({"outer_step": step, "norms": norms}, {})
    checkpoints.finish()
    checkpoints.close()
    if rank == 0:
        Path(to.folder(step)).rename(directory)
    torch.distributed.barrier()


def plain_adamw(clipping: float, drop: str | None = None) -> tuple[EngineState, list[float]]:
    """What the engine has to come to, by torch alone: one process with the mean gradient of all tasks."""
    model = TinyModel()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = [p for p in trained.values() if p.ndim > 1]
    others = [p for p in trained.values() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8)
    norms = []
    for step in range(STEPS):
        mean = gradient({name: p.detach() for name, p in model.named_parameters()}, step, rank=0, world_size=1)
        for name, parameter in trained.items():
            parameter.grad = torch.zeros_like(parameter) if name == drop else mean[name]
        norms.append(float(nn.utils.clip_grad_norm_(trained.values(), clipping or math.inf)))
        optimizer.step()
    moments = {key: {n: optimizer.state[p][key] for n, p in trained.items()} for key in ("exp_avg", "exp_avg_sq")}
    return EngineState(STEPS, {n: p.detach() for n, p in model.named_parameters()}, **moments), norms


def largest_difference(one: EngineState, other: EngineState) -> float:
    assert one.step == other.step
    differences = []
    for key in ("weights", "exp_avg", "exp_avg_sq"):
        mine, theirs = getattr(one, key), getattr(other, key)
        assert mine.keys() == theirs.keys()
        differences += [float((mine[name] - theirs[name]).abs().max()) for name in mine]
    return max(differences)
