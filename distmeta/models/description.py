"""What stands beside a network in its folder, so that others can use it as it was trained: `distmeta.json` for this
software, and the files that make it a folder of sentence-transformers. All of it is JSON and safetensors.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

import distmeta
from distmeta.errors import UserError
from distmeta.files import write_json
from distmeta.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from distmeta.config import Config
    from distmeta.models.network import Network

FILE, LEARNED = "distmeta.json", "learned.safetensors"
FORMAT = 1
"""Rises when a reader of before would misunderstand the file."""
POOLING_FOLDER = "1_Pooling"
POOLING_NAMES = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}
"""What sentence-transformers calls each pooling."""


@dataclass(frozen=True)
class Description:
    """How the network in a folder makes features, and what was learned beside it."""

    pooling: str
    """mean, first or last: which hidden states are a text's features."""
    max_length: int
    """Longest text (tokens)."""
    meta: Mapping[str, Any] | None = None
    """The settings of meta-learning, by which its algorithm adapts it; None: it knows of none."""
    inner_steps: int = 0
    lora: Mapping[str, Any] | None = None
    """Rank, alpha and targets of the adapters, which are in the weights; `learned.safetensors` has them by themselves.
    None: there are none."""
    classifier: Mapping[str, Any] | None = None
    """Of a folder that `distmeta adapt` has written: see `distmeta.adapt.saved`."""
    shown: Mapping[str, Any] = field(default_factory=dict)
    """What the run's own evaluation showed: accuracy by network and use."""

    @classmethod
    def of_run(cls, config: "Config", *, is_trained: bool) -> Self:
        """That of a network of a run with this resolved configuration. The mean stands for the mask, since other texts
        hide no word, and the starting network knows of no algorithm."""
        pooling = "mean" if config.model.pooling == "mask" else config.model.pooling
        if not is_trained:
            return cls(pooling, config.tokenizer.max_length)
        keys = ("lora_rank", "lora_alpha", "lora_targets")
        lora = {key: getattr(config.model, key) for key in keys} if config.meta.adapt == "lora" else None
        steps = config.evaluate.inner_steps or 0
        return cls(pooling, config.tokenizer.max_length, config.meta.model_dump(), steps, lora)

    def learned(self, network: "Network", parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of a network's parameters that were learned beside it. In a folder it has no language model, so that
        those which are named by others have other names there."""
        names = [name for name in parameters if name.startswith(("learned.", "lora."))] if self.meta else []
        inside = f"model/{network.model.base_model_prefix}/" if network.has_language_model else "model/"
        return {name.replace(inside, "model/", 1): parameters[name] for name in names}

    def write(self, folder: Path, learned: Mapping[str, Tensor] | None = None) -> None:
        """Writes it beside a network, with what was learned."""
        content = {"format": FORMAT, "distmeta": distmeta.__version__, **asdict(self)}
        write_json(folder / FILE, content)
        if learned:
            write_tensors(folder / LEARNED, {name: value.contiguous() for name, value in learned.items()})

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """That of a folder; of one of sentence-transformers without ours, what that says; None: neither is there.

        Raises:
            UserError: it is of a later version, or cannot be read.
        """
        file = folder / FILE
        if not file.exists():
            return cls._of_modules(folder)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            found, version = content.pop("format"), content.pop("distmeta")
            if found > FORMAT:
                raise UserError(f"{file}: it was written by distmeta {version}; install that version or a later one")
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); write the folder again by `distmeta export`") from None

    @classmethod
    def _of_modules(cls, folder: Path) -> Self | None:
        try:
            pooling = json.loads((folder / POOLING_FOLDER / "config.json").read_text(encoding="utf-8"))
            settings = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        modes = [name for name, mode in POOLING_NAMES.items() if pooling.get(f"pooling_mode_{mode}")]
        if len(modes) != 1 or not settings.get("max_seq_length"):
            return None
        return cls(modes[0], int(settings["max_seq_length"]))


def show(folder: Path, methods: Mapping[str, Mapping[str, float]]) -> None:
    """Notes beside a network what an evaluation showed of it and its like: see `Description.shown`."""
    if description := Description.read(folder):
        replace(description, shown=methods).write(folder)


def learned_of(folder: Path) -> dict[str, Tensor]:
    """What was learned beside the network in a folder, by the names of its parameters."""
    file = folder / LEARNED
    return dict(read_tensors(file).items()) if file.exists() else {}


def write_modules(folder: Path, pooling: str, max_length: int, width: int) -> None:
    """Makes the folder of a network one of sentence-transformers, whose features are ours."""
    base = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{base}.Transformer"},
        {"idx": 1, "name": "1", "path": POOLING_FOLDER, "type": f"{base}.Pooling"},
    ]
    modes = {f"pooling_mode_{mode}": name == pooling for name, mode in POOLING_NAMES.items()}
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    (folder / POOLING_FOLDER).mkdir(exist_ok=True)
    write_json(folder / POOLING_FOLDER / "config.json", {"word_embedding_dimension": width, **modes})
