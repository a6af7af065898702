"""The work of a worker: its share of each meta-batch, drawn one step ahead while the network computes."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from distmeta.compute.batch import collate_task
from distmeta.meta import Work
from distmeta.meta.language_model import LanguageModelBatch, causal_batch, masked_batch
from distmeta.setup import Setup


class WorkSource:
    """Gives a worker its pieces of work of an outer step: the task indices that are `rank` modulo `world_size`."""

    def __init__(self, setup: Setup, device: torch.device, rank: int, world_size: int) -> None:
        self._config, self._seed = setup.config.meta, setup.config.train.seed
        self._tasks, self._text = setup.tasks("train"), setup.text()
        self._classes = setup.training_classes
        self._tokenizer, self._kind = setup.tokenizer, setup.kind
        self._device, self._rank, self._world_size = device, rank, world_size
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="distmeta-work")
        self._ahead: tuple[int, Future[list[Work]]] | None = None

    def take(self, step: int) -> list[Work]:
        """The worker's pieces of outer step number `step` (from 0)."""
        is_ready = self._ahead is not None and self._ahead[0] == step
        work = self._ahead[1].result() if is_ready and self._ahead else self._draw(step)
        self._ahead = (step + 1, self._pool.submit(self._draw, step + 1))
        return work

    def close(self) -> None:
        """Ends the thread that draws ahead."""
        self._pool.shutdown(cancel_futures=True)

    def _draw(self, step: int) -> list[Work]:
        batch = self._config.meta_batch_size
        indices = range(step * batch, (step + 1) * batch)
        return [self._piece(step, index) for index in indices if index % self._world_size == self._rank]

    def _piece(self, step: int, index: int) -> Work:
        task = None
        if step >= self._config.lm_warmup_steps:
            drawn = self._tasks.draw(index)
            task = collate_task(drawn, self._tokenizer.pad_token_id, self._device)
            if self._classes is not None:
                task = replace(task, head=self._classes.rows(drawn.source, drawn.classes, self._device))
        text = None
        if self._text is not None and (task is None or self._config.lm_weight):
            size = self._config.lm_batch_size
            numbers = range(index * size, (index + 1) * size)
            text = self._text_batch([self._text.draw(number) for number in numbers], index)
        return Work(index, task, text)

    def _text_batch(self, segments: Sequence[Sequence[int]], index: int) -> LanguageModelBatch:
        if self._kind == "decoder":
            return causal_batch(segments, self._tokenizer, self._device)
        return masked_batch(
            segments,
            self._tokenizer,
            self._device,
            mask_rate=self._config.lm_mask_rate,
            seed=(self._seed, "mask", index),
        )
