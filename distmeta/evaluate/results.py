"""What a method scored in an evaluation."""

from dataclasses import dataclass
from typing import Literal

Use = Literal["inner-loop", "prototype", "logistic-regression", "queries-together", "fine-tuning"]
NETWORK_USES: tuple[Use, ...] = ("inner-loop", "prototype", "logistic-regression")
TOGETHER: Use = "queries-together"
"""What sees the queries of an episode together, another question than one at a time: no verdict is about it."""
USES: tuple[Use, ...] = (*NETWORK_USES, TOGETHER, "fine-tuning")
"""In the order of a table."""


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What a network scored in one of its uses, on the same episodes as every other method, in the same order."""

    network: str
    """meta-pretrained, starting, language-model, multitask, tf-idf; in a sweep also the trial."""
    use: Use
    accuracy: list[float]
    """Of each episode; of what takes long, of the first ones alone."""
    precision: list[float]
    recall: list[float]
    f1: list[float]
    adapt_seconds: list[float]
    """Seconds from the support set to a classifier, an episode."""
    accuracy_before: list[float] | None = None
    """Accuracy before the inner loop, where there is one."""

    @property
    def name(self) -> str:
        """The network and its use: `meta-pretrained inner-loop`."""
        return f"{self.network} {self.use}"
