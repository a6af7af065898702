"""Settings of the model."""

from typing import Any, Literal

from pydantic import Field

from distmeta.packages import local_folder
from distmeta.section import Pattern, Section

DEFAULT_MODEL: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
    "initializer_range": 0.08,  # about 1 / sqrt(hidden_size); the usual 0.02 is meant for wide networks
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class ModelConfig(Section):
    """The network: loaded, or new."""

    name_or_path: str | None = None
    """Folder or hub name of a pretrained model, or package:NAME/FOLDER for a folder inside an installed Python package;
    unset: a new one as `config` says."""
    config: dict[str, Any] = Field(default=DEFAULT_MODEL)
    """A new model: `model_type` and what its configuration takes; vocabulary size and special ids are filled in."""
    pooling: Literal["auto", "mean", "mask", "first", "last"] = "auto"
    """Which hidden states are a text's features; auto: the mask position for SMLMT on an encoder, else their mean."""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """Attention implementation; auto: sdpa, but eager for second order, or where the model has no sdpa."""
    lora_rank: int = Field(default=8, ge=1)
    """Rank of the LoRA adapters of `meta.adapt: lora`."""
    lora_targets: Pattern | None = None
    """Regular expression over the names of the layers that get adapters; unset: query and value projections."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """LoRA's update is scaled by alpha / rank."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model. Only for models whose code you have read."""

    @property
    def source(self) -> str | None:
        """The folder or hub name behind `name_or_path` on this machine; None of a new model.

        Raises:
            UserError: it is in a package that is not installed here.
        """
        return None if self.name_or_path is None else local_folder(self.name_or_path, "model.name_or_path")
