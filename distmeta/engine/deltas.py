"""Additive fast weights: a task's own tensors, added to parameters where the modules that own them read them.

No parameter is needed but the one that is being read, so they serve where ZeRO 3 gives a module its weights for the
time of its forward pass only.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from distmeta.errors import UserError
from distmeta.models import Network


class Deltas:
    """Adds `values`, by parameter name, to the parameters `names` of a network in each of its forward passes.

    To be made when all other hooks are in place: it has to come after what makes a module's parameters whole, and
    before what empties them. A tied parameter gets its delta in every module that reads it.

    Raises UserError where a name is no parameter of the network.
    """

    def __init__(self, network: nn.Module, parameters: Mapping[str, nn.Parameter], names: Iterable[str]) -> None:
        self.values: Mapping[str, Tensor] = {}
        names_of = {}
        for name in names:
            if name not in parameters:
                raise UserError(f"{name}, which is to be adapted, is no parameter of this network")
            names_of[id(parameters[name])] = name
        for module in network.modules():
            owned = {key: names_of[id(p)] for key, p in module.named_parameters(recurse=False) if id(p) in names_of}
            if owned:
                self._attach(module, owned)

    def _attach(self, module: nn.Module, names: dict[str, str]) -> None:
        bases: dict[str, nn.Parameter] = {}

        def add(_module: nn.Module, _inputs: Any) -> None:
            for key, name in names.items():
                if name in self.values:
                    bases[key] = module._parameters[key]  # type: ignore[assignment]
                    module._parameters[key] = bases[key] + self.values[name]  # type: ignore[assignment]

        def take_back(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            module._parameters.update(bases)
            bases.clear()

        module.register_forward_pre_hook(add)
        module.register_forward_hook(take_back, prepend=True, always_call=True)


class _Adapter(nn.Module):
    """The factors of a LoRA adapter as a module of its own, so that they are there when they are multiplied."""

    def __init__(self, a: nn.Parameter, b: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.scale = a, b, scale

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * functional.linear(functional.linear(inputs, self.a), self.b)


def apply_adapters_in_modules(network: Network) -> None:
    """Make a network's LoRA adapters part of its forward pass, instead of something that is merged into its weights.

    The output of an adapted layer is W x + b + alpha / r * B A x (Hu et al. 2021, https://arxiv.org/abs/2106.09685,
    section 4.1): the same without a weight of the layer's size. The parameters stay the same objects, under other
    names.
    """
    adapters = nn.ModuleList()
    for target in network.lora_targets:
        a, b = (network.lora[f"{target.key}/{factor}"] for factor in "ab")
        adapter = _Adapter(a, b, network.lora_scale)
        adapters.append(adapter)
        network.get_submodule(target.weight.rpartition(".")[0]).register_forward_hook(
            _adding(adapter, target.start, target.stop)
        )
    if network.lora_targets:
        network.lora_targets = []
        del network.lora
        network.add_module("lora", adapters)


def _adding(adapter: _Adapter, start: int, stop: int) -> Any:
    def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        update = adapter(inputs[0])
        return output + functional.pad(update, (start, output.shape[-1] - stop))

    return add
