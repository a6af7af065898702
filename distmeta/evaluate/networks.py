"""Networks that are scored: where each is, so that any process can load it, and what it makes of a text."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

import torch

from distmeta.config import Config
from distmeta.corpus.encoder import Encoder, load_encoder
from distmeta.corpus.parts import digest, file_digest
from distmeta.corpus.tokenizer import load_source, save_tokenizer, tokenizer_identity
from distmeta.engine.precision import set_up_arithmetic
from distmeta.evaluate.score import Scorer
from distmeta.meta import algorithm_class
from distmeta.models import load_network, load_tokenizer, load_weights
from distmeta.models.load import load_model_config
from distmeta.models.weight_files import find_weights
from distmeta.models.weights import weights_digest
from distmeta.packages import local_folder
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.store.folders import file_at, given
from distmeta.tasks.episode import Example
from distmeta.tasks.index_draw import encode_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Tokens = tuple[tuple[int, ...], int]
"""Token ids of a text with special tokens, and the position of the mask, -1 for none."""


OfFeatures = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Scores, from a support set's features, their labels, the features of queries, and the number of classes."""


class Place(Protocol):
    """Where a network with weights is, for another process that loads it."""

    def load(self) -> Scorer: ...
    def __hash__(self) -> int: ...


@lru_cache(maxsize=1)
def load(place: Place) -> Scorer:
    """The network of a place, ready to be scored; a process holds one at a time.

    Raises:
        UserError: it is not there.
    """
    return place.load()


class ScoredNetwork(Protocol):
    """What an evaluation asks of a network."""

    @property
    def name(self) -> str: ...
    @property
    def adapts(self) -> bool:
        """Whether it has an inner loop."""
        ...

    @property
    def fine_tuning_episodes(self) -> int:
        """On how many of the first episodes it is also fine-tuned."""
        ...

    @property
    def adaptation(self) -> str:
        """A hash of how its inner loop goes."""
        ...

    @property
    def of_features(self) -> OfFeatures | None:
        """What its algorithm makes of features alone (`Algorithm.of_features`); None where it has an inner loop that
        changes them, or no algorithm."""
        ...

    @property
    def place(self) -> Place: ...
    @property
    def identity(self) -> str:
        """A hash of what its features depend on, beside the tokens of a text."""
        ...

    def encode(self, examples: Sequence[Example]) -> list[Tokens]: ...
    def with_mean_features(self) -> "ScoredNetwork":
        """The same network with the mean hidden state for features, to be given any texts."""
        ...


@dataclass(frozen=True)
class Candidate:
    """The network of a run."""

    name: str
    setup: Setup
    """Its inner loop adapts as this configuration says."""
    weights: Path
    reads_text: bool = False
    """Whether the episodes are of another corpus: their texts are tokenized by the run's own tokenizer."""
    adapts: bool = True
    fine_tuning_episodes: int = 0

    @cached_property
    def adaptation(self) -> str:
        """See `ScoredNetwork`."""
        config = self.setup.config
        if not self.adapts:
            return digest([])
        learned = weights_digest(self.weights, learned=True)
        return digest([config.meta.model_dump(), config.evaluate.inner_steps, learned])

    @property
    def of_features(self) -> OfFeatures | None:
        """See `ScoredNetwork`."""
        meta = self.setup.config.meta
        return algorithm_class(meta.algorithm).of_features(meta) if self.adapts else None

    def with_mean_features(self) -> "Candidate":
        """See `ScoredNetwork`."""
        config = self.setup.config.model_copy(deep=True)
        config.model.pooling = "mean"
        config.corpus.directory = str(self.setup.corpus)
        setup = Setup(config, RunDirectory(self.setup.corpus.parent))
        return Candidate(self.name, setup, self.weights, reads_text=True)

    @cached_property
    def place(self) -> Place:
        """Where it is."""
        config = self.setup.config.model_copy(deep=True)
        config.corpus.directory = given(self.setup.corpus)
        return RunPlace(config.model_dump_json(), given(self.weights))

    @cached_property
    def identity(self) -> str:
        """A hash of what its features depend on, beside the tokens of a text."""
        model = self.setup.config.model.model_dump()
        return digest([model, self.setup.config.engine.precision, weights_digest(self.weights, learned=False)])

    def encode(self, examples: Sequence[Example]) -> list[Tokens]:
        """The tokens of each text."""
        if not self.reads_text:
            return [(example.input_ids, example.mask_position) for example in examples]
        encoder = load_encoder(self.setup.corpus / "tokenizer")
        return _tokens(examples, encoder, self.setup.manifest.max_length)


@dataclass(frozen=True)
class RunPlace:
    """The network of a run."""

    config: str
    """The configuration, as JSON."""
    weights: str
    """Path or address of the file."""

    def load(self) -> Scorer:
        """See `load`."""
        config = Config.model_validate(json.loads(self.config))
        assert config.corpus.directory is not None
        setup = Setup(config, RunDirectory(Path()))  # the corpus is where its directory says
        device, precision = _arithmetic(config)
        network = setup.network().to(device)
        parameters, _ = load_weights(file_at(self.weights), device)
        assert config.evaluate.inner_steps is not None  # resolved
        skeleton = network.skeleton().to(device)
        return Scorer(
            skeleton,
            parameters,
            algorithm_class(config.meta.algorithm)(skeleton, config.meta),
            config.evaluate.inner_steps,
            precision,
            setup.tokenizer.pad_token_id,
        )


@dataclass(frozen=True)
class Model:
    """A network that belongs to no run: `model.name_or_path` of a resolved configuration, as it is there."""

    name: str
    config: Config
    adapts: bool = False
    fine_tuning_episodes: int = 0
    adaptation: str = ""
    of_features: OfFeatures | None = None

    def with_mean_features(self) -> "Model":
        """See `ScoredNetwork`."""
        config = self.config.model_copy(deep=True)
        config.model.pooling = "mean"
        return Model(self.name, config)

    @property
    def source(self) -> str:
        """What it was asked for by."""
        assert self.config.model.name_or_path is not None
        return self.config.model.name_or_path

    @cached_property
    def place(self) -> Place:
        """Where it is."""
        return ModelPlace(self.config.model_dump_json())

    @cached_property
    def identity(self) -> str:
        """A hash of what its features depend on, beside the tokens of a text."""
        hf_config = load_model_config(self.config.model)
        files = find_weights(local_folder(self.source, "model.name_or_path"), hf_config)
        model = self.config.model.model_dump(exclude={"name_or_path"})
        contents = [*map(file_digest, files.paths), self.tokenizer_identity]
        settings = [model, self.config.engine.precision, self.config.tokenizer.max_length]
        return digest([settings, hf_config.to_json_string(), contents])

    def encode(self, examples: Sequence[Example]) -> list[Tokens]:
        """The tokens of each text, by its own tokenizer."""
        with TemporaryDirectory() as folder:
            save_tokenizer(load_source(self.source, quietly=True), self.config.tokenizer.max_length, Path(folder))
            encoder = Encoder(Path(folder))
        return _tokens(examples, encoder, self.config.tokenizer.max_length)

    @property
    def tokenizer_identity(self) -> object:
        """What determines its tokenizer."""
        return tokenizer_identity(self.source)


@dataclass(frozen=True)
class ModelPlace:
    """A network that belongs to no run."""

    config: str
    """The resolved configuration, as JSON."""

    def load(self) -> Scorer:
        """See `load`."""
        config = Config.model_validate(json.loads(self.config))
        assert config.model.name_or_path is not None
        tokenizer = _complete_tokenizer(config.model.name_or_path, config.tokenizer.max_length)
        device, precision = _arithmetic(config)
        network = load_network(
            config.model,
            tokenizer,
            pooling=config.model.pooling,  # type: ignore[arg-type]  # resolved
            attention=config.model.attention,
            lora=False,
            language_model=False,
            seed=0,
            computation=config.engine.computation,
            max_length=config.tokenizer.max_length,
            tasks_side_by_side=False,
        ).to(device)
        parameters = {name: value.detach() for name, value in network.named_parameters()}
        return Scorer(network, parameters, None, 0, precision, tokenizer.pad_token_id)


def _complete_tokenizer(source: str, max_length: int) -> "PreTrainedTokenizerFast":
    """A tokenizer with the pad and mask tokens that it lacks."""
    with TemporaryDirectory() as folder:
        save_tokenizer(load_source(source, quietly=True), max_length, Path(folder))
        return load_tokenizer(folder)  # type: ignore[return-value]


def _tokens(examples: Sequence[Example], encoder: Encoder, max_length: int) -> list[Tokens]:
    texts = [[example.text] if example.pair is None else [example.text, example.pair] for example in examples]
    encoded, _ = encode_rows(texts, encoder, max_length)
    return [(tuple(ids), -1) for ids in encoded]


def _arithmetic(config: Config) -> tuple[torch.device, str]:
    """The device of this process, and the precision of passes on it."""
    device = torch.device("cuda" if torch.cuda.is_available() and config.engine.device != "cpu" else "cpu")
    return device, set_up_arithmetic(config.engine.precision, device)
