"""What an engine has learned, by parameter name: the same for any number of workers and any ZeRO stage."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from distmeta.errors import UserError
from distmeta.tensors import outlines_of, take_part


@dataclass(frozen=True, slots=True)
class EngineState:
    """Full-size fp32 tensors, keyed by the parameter's name in the module (tied parameters once); they may be lazy."""

    step: int
    """Updates that were applied."""
    weights: Mapping[str, Tensor]
    exp_avg: Mapping[str, Tensor]
    """AdamW's running mean of the gradient, of the parameters that are trained."""
    exp_avg_sq: Mapping[str, Tensor]
    """AdamW's running mean of the squared gradient, of the parameters that are trained."""

    def take_part(self) -> None:
        """Take part in gathering every tensor, in the order of `write_checkpoint`, where another worker writes them."""
        for tensors in (self.weights, self.exp_avg, self.exp_avg_sq):
            take_part(tensors)

    def check_fits(self, module: nn.Module) -> None:
        """Raise UserError, naming the first difference, unless names and shapes are those of `module`."""
        parameters = dict(module.named_parameters())
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        _check_same("weights", outlines_of(self.weights), parameters)
        _check_same("exp_avg", outlines_of(self.exp_avg), trained)
        _check_same("exp_avg_sq", outlines_of(self.exp_avg_sq), trained)


def _check_same(what: str, stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    advice = "resume with the model settings it was written with, or begin in another run directory"
    for name, tensor in expected.items():
        if name not in stored:
            raise UserError(f"the checkpoint's {what} lack {name}, which the model has: {advice}")
        if stored[name].shape != tensor.shape:
            shapes = f"{list(stored[name].shape)} in the checkpoint's {what} and {list(tensor.shape)} in the model"
            raise UserError(f"{name} is {shapes}: {advice}")
    for name in stored:
        if name not in expected:
            raise UserError(f"the checkpoint's {what} hold {name}, which the model lacks: {advice}")
