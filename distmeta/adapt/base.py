"""The networks that a classifier is made from: those of a run, or the one in a folder or on a hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from distmeta.corpus.encoder import Encoder
from distmeta.corpus.tokenizer import load_source, save_tokenizer
from distmeta.engine.precision import Precision, faster
from distmeta.errors import UserError
from distmeta.evaluate.features import features_of
from distmeta.evaluate.networks import Tokens
from distmeta.evaluate.score import Scorer
from distmeta.meta import algorithm_class
from distmeta.meta.config import MetaConfig
from distmeta.models import load_network, load_tokenizer
from distmeta.models.config import ModelConfig
from distmeta.models.description import Description, learned_of
from distmeta.models.export import LANGUAGE_MODEL_FOLDER
from distmeta.models.load import load_model_config, max_sequence_length, network_without_weights
from distmeta.packages import local_folder
from distmeta.rundir import RunDirectory
from distmeta.tasks.index_draw import encode_rows

Text = tuple[str, ...]
"""A text, or two that belong together."""

TRAINED, STARTING, AVERAGE, NETWORK = "meta-pretrained", "starting", "average", "network"
"""Names of networks: of a run the one that it keeps, the one that it began with, and the mean of the two; of a folder
without a run its only one."""
MOST_TOKENS = 512
"""Longest text of a network that nothing is said about (tokens)."""


@dataclass(frozen=True)
class Base:
    """A network with weights, and its tokenizer."""

    name: str
    """One of the names above."""
    scorer: Scorer
    """Its algorithm is None where it knows of none."""
    tokenizer: PreTrainedTokenizerFast
    encoder: Encoder
    description: Description

    @property
    def pad_token_id(self) -> int:
        """Fills short sequences up."""
        return self.scorer.pad_token_id

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(iter(self.scorer.parameters.values())).device

    def encode(self, texts: Sequence[Text]) -> list[Tokens]:
        """The tokens of each text; all of them are single, or all are pairs."""
        ids, _ = encode_rows([list(each) for each in texts], self.encoder, self.description.max_length)
        return [(tuple(each), -1) for each in ids]

    def features(self, tokens: Sequence[Tokens]) -> NDArray[np.floating]:
        """The features of each text, (texts, width), padded as little as can be."""
        order = sorted(range(len(tokens)), key=lambda number: -len(tokens[number][0]))
        found = features_of(self.scorer, [tokens[number] for number in order])
        values = np.empty_like(found)
        values[order] = found
        return values

    def with_parameters(self, name: str, parameters: Mapping[str, Tensor]) -> "Base":
        """The same network with other weights; the algorithm stays, since it asks the network alone."""
        return replace(self, name=name, scorer=replace(self.scorer, parameters=dict(parameters)))


def load_bases(model: str, device: torch.device, precision: Precision = "fp32") -> list[Base]:
    """The networks of a run (the kept one, the starting one, their average), or the one in a folder or on a hub.

    Raises:
        UserError: there is none, or it has none that can be loaded.
    """
    places = _places(model)
    stamp = tuple(_stamp(place) for place in places.values())
    try:
        return _load(tuple(places.items()), device, precision, stamp)
    except UserError as error:
        if Path(model).exists() or ":" in model:
            raise
        why = str(error).removeprefix("model.name_or_path: ")
        raise UserError(f"MODEL: there is no folder {model}, nor can a hub be asked for it: {why}") from None


@lru_cache(maxsize=2)
def _load(places: tuple[tuple[str, str], ...], device: torch.device, precision: Precision, stamp: object) -> list[Base]:
    """`stamp` changes with the files, so that no network of before is taken for the one that is there now."""
    bases = [load_base(name, place, device, precision) for name, place in places]
    if len(bases) == 2:
        trained, starting = bases
        start = starting.scorer.parameters
        mean = {
            name: torch.lerp(value, start[name], 0.5) if name in start and value.is_floating_point() else value
            for name, value in trained.scorer.parameters.items()
        }
        bases.append(trained.with_parameters(AVERAGE, mean))
    return bases


def load_base(name: str, place: str, device: torch.device, precision: Precision = "fp32") -> Base:
    """The network in a folder or on a hub, with weights in fp32 and passes in a precision.

    Raises:
        UserError: it cannot be loaded.
    """
    source = local_folder(place, "model")
    folder = Path(source)
    description = Description.read(folder) or Description("mean", MOST_TOKENS)
    meta = MetaConfig(**description.meta) if description.meta else None
    algorithm = algorithm_class(meta.algorithm) if meta else None
    whole = algorithm is not None and algorithm.needs_language_model
    lora = description.lora or {}
    config = ModelConfig(name_or_path=str(folder / LANGUAGE_MODEL_FOLDER) if whole else source, **lora)
    load_model_config(config)
    limit = max_sequence_length(network_without_weights(config, lora=False, language_model=whole).base)
    description = replace(description, max_length=min(description.max_length, limit or MOST_TOKENS))
    with TemporaryDirectory() as scratch:
        save_tokenizer(load_source(source, quietly=True), description.max_length, Path(scratch))
        tokenizer: Any = load_tokenizer(scratch)
        encoder = Encoder(Path(scratch))
    network = load_network(
        config,
        tokenizer,
        pooling=description.pooling,  # type: ignore[arg-type]  # one of them
        attention="eager",
        lora=bool(lora),
        language_model=whole,
        seed=0,
        max_length=description.max_length,
        tasks_side_by_side=False,
    )
    learned = learned_of(folder)
    network.learn({name.removeprefix("learned."): value for name, value in learned.items() if _is_beside(name)})
    network = network.to(device)
    parameters = {each: value.detach() for each, value in network.named_parameters()}
    if lora:
        parameters = _taken_out(network, parameters, {each: value.to(device) for each, value in learned.items()})
    adapting = algorithm(network, meta) if algorithm and meta else None
    passes = faster(device)[0] if precision == "auto" else precision
    scorer = Scorer(network, parameters, adapting, description.inner_steps, passes, tokenizer.pad_token_id)
    return Base(name, scorer, tokenizer, encoder, description)


def _is_beside(name: str) -> bool:
    return name.startswith("learned.")


def _taken_out(network: Any, parameters: dict[str, Tensor], learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the adapters that were written into them, and those by themselves."""
    own = parameters | {name: value for name, value in learned.items() if not _is_beside(name)}
    negative = own | {name: -value for name, value in own.items() if name.startswith("lora.") and name.endswith("/b")}
    return own | network.merged(negative)


def _places(model: str) -> dict[str, str]:
    """The folders or the hub's name behind what a user has named, by the name of the network.

    Raises:
        UserError: a run is there that has written no network yet.
    """
    path = Path(model).expanduser()
    run = RunDirectory(path.parent if path.name == "model" else path)
    if run.config.exists() and (run.best_weights.exists() or run.model.is_dir()):
        if not run.model.is_dir():
            raise UserError(f"{run.path}: the run has exported no network yet: distmeta export --run-dir {run.path}")
        starting = {STARTING: str(run.starting)} if run.starting.is_dir() else {}
        return {TRAINED: str(run.model), **starting}
    return {NETWORK: str(path) if path.exists() else model}


def _stamp(place: str) -> object:
    folder = Path(local_folder(place, "model"))
    if not folder.is_dir():
        return place
    files = sorted(each for each in folder.glob("*") if each.is_file())
    return tuple((str(each), each.stat().st_mtime_ns, each.stat().st_size) for each in files)
