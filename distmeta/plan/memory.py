"""Memory of a worker: what weights, gradients and optimizer states take at each ZeRO stage, by formula."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmeta.config import Config
from distmeta.errors import UserError

FLOAT = 4
"""Bytes of an fp32 number: weights, gradients and optimizer states are fp32 throughout."""

STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class ModelStates:
    """Bytes that a worker's engine holds for the model, P parameters of which T are trained, on W workers.

    Between two steps, in numbers of 4 bytes (Rajbhandari et al. 2020, "ZeRO", section 3, with fp32 in the place of
    half precision, as distmeta uses DeepSpeed 0.19):

        stage 0     P weights + 2 T AdamW moments
        stage 1, 2  P weights + (T weights that are updated + 2 T moments) / W
        stage 3     (P weights + T weights that are updated + 2 T moments + T gradients) / W + a bucket

    While a step is taken, also T gradients that the learner hands over, and

        stage 0     T gradients, averaged, and DeepSpeed's flat buffer of them: T numbers, but no more than
                    `ALLREDUCE_BUFFER`, with one worker too
        stage 1, 2  while AdamW works on the flat shard, T / W averaged gradients, their flat copy, and two temporaries
                    (the square root of a moment, and that divided); or before that two buckets, for gradients on their
                    way and flattened, and T / W averaged ones, where the buckets are still there (they are not in
                    every step): whichever is more
        stage 3     on one worker 3 T: the flat copy and the two temporaries. With others P weights that the learner had
                    gathered and the loop still holds; and T weights that the engine gathers to take the gradients and
                    two buckets (flattened gradients, and their parts to send), or AdamW's 3 T / W, whichever is more

    The bucket is what the engine sets aside for communication: T numbers, but no more than `LARGEST_BUCKET`. AdamW's
    temporaries are those of a CPU. Both were followed by a dispatch mode through DeepSpeed 0.19 and torch 2.13.
    """

    parameters: int
    trained: int
    workers: int
    stage: int

    @property
    def bucket(self) -> int:
        """Bytes of the communication bucket."""
        return FLOAT * min(self.trained, LARGEST_BUCKET)

    @property
    def resident(self) -> float:
        """Bytes held between two steps."""
        parameters, trained, workers = self.parameters, self.trained, self.workers
        if self.stage == 0:
            return FLOAT * (parameters + 2 * trained)
        if self.stage < 3:
            return FLOAT * (parameters + 3 * trained / workers)
        return FLOAT * (parameters + 4 * trained) / workers + self.bucket

    @property
    def peak(self) -> float:
        """Bytes held at most, which is while a step is taken."""
        trained = FLOAT * self.trained
        share = trained / self.workers
        held = self.resident + trained
        if self.stage == 0:
            return held + trained + FLOAT * min(self.trained, ALLREDUCE_BUFFER)
        if self.stage < 3:
            return held + max(4 * share, 2 * self.bucket + share)
        if self.workers == 1:
            return held + 3 * share
        return held + FLOAT * self.parameters + max(trained + 2 * self.bucket, 3 * share)


LARGEST_BUCKET = 50_000_000
"""Numbers in the engine's largest bucket; a test holds it against `distmeta.engine.deepspeed_engine`."""

ALLREDUCE_BUFFER = 500_000_000
"""Numbers in DeepSpeed's largest buffer at stage 0; a test holds it against its MEMORY_OPT_ALLREDUCE_SIZE."""


def parameter_count(config: Config, vocab_size: int) -> int:
    """Parameters of the network, adapters included, without making it: on torch's meta device, which allocates nothing.

    `vocab_size` is that of a new model, whose tokenizer need not be there yet; a loaded one has its own.
    """
    import torch
    from torch import nn
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    from distmeta.models import Network
    from distmeta.models.load import load_model_config, model_kind
    from distmeta.setup import wants_language_model

    hf_config = load_model_config(config.model)
    if config.model.name_or_path is None:
        hf_config.vocab_size, hf_config.pad_token_id = vocab_size, 0
    auto: Any = AutoModel
    if wants_language_model(config):
        auto = AutoModelForMaskedLM if model_kind(hf_config) == "encoder" else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(hf_config, trust_remote_code=config.model.trust_remote_code)
        if auto is AutoModel and isinstance(getattr(model, "pooler", None), nn.Module):
            model.pooler = None  # as `load_network` does
        network = Network(model, "mean", lora_rank=config.model.lora_rank if config.meta.adapt == "lora" else 0)
    return sum(parameter.numel() for parameter in network.parameters())


def memory_by_stage(parameters: int, trained: int, workers: int, other: float) -> dict[str, float]:
    """Bytes a worker at each ZeRO stage: its model states at their peak, and `other` memory, which no stage changes."""
    return {str(stage): ModelStates(parameters, trained, workers, stage).peak + other for stage in STAGES}


def memory_of_a_worker(config: Config) -> tuple[float, str]:
    """Bytes that a worker may use on this machine, and where the number comes from."""
    import torch

    if config.engine.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "the GPU has"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    cpus = len(os.sched_getaffinity(0))
    here = max(1, min(config.train.num_workers, int(cpus // config.train.cpus_per_worker)))
    return total / here, f"this machine has for each of {here} workers"


def check_memory(plan: Mapping[str, Any], memory_bytes: float | None, config: Config) -> None:
    """Refuses a run that does not fit.

    Raises:
        UserError: with what a worker needs, what it has, and the nearest setting that works, if any does.
    """
    available, has = (memory_bytes, "--memory gives it") if memory_bytes is not None else memory_of_a_worker(config)
    needed = plan["peak_memory_bytes"]
    if needed <= available:
        return
    stage, workers = config.engine.zero_stage, config.train.num_workers
    remedy = "no ZeRO stage and no number of workers makes it fit: take a smaller model, or meta.adapt lora or head"
    other = needed - ModelStates(plan["parameters"], plan["trained_parameters"], workers, stage).peak
    for count in (workers, *(workers * 2**power for power in range(1, 11))):
        by_stage = memory_by_stage(plan["parameters"], plan["trained_parameters"], count, other)
        fitting = [each for each in STAGES if each >= stage and by_stage[str(each)] <= available]
        if fitting:
            setting = f"engine.zero_stage {fitting[0]}"
            if count != workers:
                setting += f" on train.num_workers {count}"
            remedy = f"{setting} needs {gib(by_stage[str(fitting[0])])}"
            break
    raise UserError(
        f"engine.zero_stage: at stage {stage} a worker needs {gib(needed)}, {has} {gib(available)}: {remedy}"
    )


def check_model_states_fit(config: Config, memory_bytes: float | None = None) -> None:
    """Refuses, before anything starts, a model whose states alone are larger than the memory that there is.

    No run that could work is refused: what its steps hold beside the states is left out, and of a new model the rows of
    the vocabulary, which may come out smaller than asked for. `check_memory` on a plan looks closer.

    Raises:
        UserError: see `check_memory`. Never where RAY_ADDRESS names a cluster, whose memory is not known.
    """
    if "RAY_ADDRESS" in os.environ and memory_bytes is None:
        return
    parameters = parameter_count(config, vocab_size=1)
    states = ModelStates(parameters, parameters, config.train.num_workers, config.engine.zero_stage)
    plan = {"parameters": parameters, "trained_parameters": parameters, "peak_memory_bytes": states.peak}
    check_memory(plan, memory_bytes, config)


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.2f} GiB"


def asha_share(max_steps: int, grace_steps: int, reduction_factor: int) -> float:
    """Expected share of all trials' steps that asynchronous successive halving takes.

    With rungs at r_k = grace * factor^k below the last step R, a share factor^-k of the trials goes from rung k - 1 on
    to rung k: the sum over k of factor^-k * (r_k - r_(k-1)), over R (Li et al. 2020, "A System for Massively Parallel
    Hyperparameter Tuning", https://arxiv.org/abs/1810.05934, section 3). An asynchronous one lets the first trials at
    a rung pass whatever they score, so few trials take more than that.
    """
    rung, before, share, taken = min(grace_steps, max_steps), 0, 1.0, 0.0
    while True:
        taken += share * (rung - before)
        if rung == max_steps:
            return taken / max_steps
        before, rung, share = rung, min(rung * reduction_factor, max_steps), share / reduction_factor
