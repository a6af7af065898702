"""Plain gradient descent of fast weights, first order, each updated where its gradient arises.

There never is more than one gradient, and weights move in place. Those of several tasks, which start from the same
weights, are no copies of these at first: their first move is written to tensors of their own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distmeta.compute.destinations import Destination, send_gradient

Parameters = dict[str, Tensor]


class Descent:
    """Leaves that a backward pass moves.

    Args:
        start: where they start.
        rate: their learning rates by name.
        record: is told each gradient; None: nobody is.
        by_task: whether weights are those of several tasks, (tasks, ...).
    """

    def __init__(
        self,
        start: Parameters,
        rate: Callable[[str], float],
        record: Callable[[Parameters], None] | None,
        *,
        by_task: bool,
    ) -> None:
        self._rate, self._record, self._by_task = rate, record, by_task
        self._own = set() if by_task else set(start)
        self._moved: Parameters = {}
        self._sent: dict[str, Destination] = {}
        values = {name: value.detach() if by_task else value.detach().clone() for name, value in start.items()}
        self.leaves = {name: self._leaf(name, value) for name, value in values.items()}

    def expect(self) -> None:
        """To be called before a forward pass whose backward pass moves the weights."""
        if not self._by_task or self._record is not None:
            return
        for name, leaf in self.leaves.items():
            here = leaf.detach()
            own = here if name in self._own else torch.empty(here.shape, dtype=here.dtype, device=here.device)
            self._sent[name] = send_gradient(leaf, own, -self._rate(name), here)

    def step(self, loss: Tensor, names: Any) -> None:
        """Moves the weights of these names down the loss."""
        loss.backward(inputs=[self.leaves[name] for name in names])
        for name in names:
            sent = self._sent.pop(name, None)
            if sent is not None and sent.is_written and name not in self._own:
                self._moved[name] = sent.target
        for name, value in self._moved.items():
            self.leaves[name] = self._leaf(name, value)
            self._own.add(name)
        self._moved.clear()

    def _leaf(self, name: str, value: Tensor) -> Tensor:
        leaf = value.requires_grad_()
        own, moved, record, factor = self._own, self._moved, self._record, -self._rate(name)

        @torch.no_grad()
        def move(leaf: Tensor) -> None:
            if leaf.grad is None:  # it has gone where it was sent
                return
            if record is not None:
                record({name: leaf.grad})
            if name in own:
                leaf.add_(leaf.grad, alpha=factor)
            else:
                moved[name] = torch.add(leaf, leaf.grad, alpha=factor)
            leaf.grad = None

        leaf.register_post_accumulate_grad_hook(move)
        return leaf
