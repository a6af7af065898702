"""Networks that are scored: where each is, so that any process can load it, and what it makes of a text."""

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from distmeta.config import Config
from distmeta.corpus.parts import digest, file_digest
from distmeta.engine.precision import set_up_arithmetic
from distmeta.evaluate.score import Scorer
from distmeta.meta import algorithm_class
from distmeta.models import load_weights
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup


@dataclass(frozen=True)
class Candidate:
    """A network that is scored."""

    name: str
    setup: Setup
    """Its inner loop adapts as this configuration says."""
    weights: Path

    @cached_property
    def place(self) -> "Place":
        """Where it is."""
        config = self.setup.config.model_copy(deep=True)
        config.corpus.directory = str(self.setup.corpus)
        return Place(config.model_dump_json(), self.weights)

    @cached_property
    def identity(self) -> str:
        """A hash of what its features depend on, beside the texts."""
        model = self.setup.config.model.model_dump()
        return digest([model, self.setup.config.engine.precision, file_digest(self.weights)])


@dataclass(frozen=True)
class Place:
    """Where a network with weights is, for another process that loads it."""

    config: str
    """The configuration, as JSON."""
    weights: Path


@lru_cache(maxsize=1)
def load(place: Place) -> Scorer:
    """The network of a place, ready to be scored; a process holds one at a time.

    Raises:
        UserError: it is not there.
    """
    config = Config.model_validate(json.loads(place.config))
    assert config.corpus.directory is not None
    setup = Setup(config, RunDirectory(Path(config.corpus.directory).parent))
    device = torch.device("cuda" if torch.cuda.is_available() and config.engine.device != "cpu" else "cpu")
    precision = set_up_arithmetic(config.engine.precision, device)
    network = setup.network().to(device)
    parameters, _ = load_weights(place.weights, device)
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
