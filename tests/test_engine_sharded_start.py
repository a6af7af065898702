"""The start with partitioned weights: one worker makes the network, the others have nothing of it but their parts."""

import resource
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from distmeta.config import Config
from distmeta.engine.config import EngineConfig
from distmeta.engine.sharded import ShardedEngine
from distmeta.errors import UserError
from distmeta.models import Network, load_network
from distmeta.models.config import ModelConfig
from distmeta.models.on_disk import parameters_on_disk
from distmeta.plan.memory import Sizes
from distmeta.tracking.cost import FlopCounter
from tests.helpers import VOCABULARY, random_task, state_on_first_worker, task_batch, word_tokenizer
from tests.workers import World

CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    # The angles by which it turns are in a buffer that is in no file of weights.
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    },
}
KINDS = [("bert", True), ("bert", False), ("gpt2", True), ("llama", True)]
"""Types of model, and whether as a language model."""


def load(model_type: str, language_model: bool, *, empty: bool = False, on_disk: bool = False) -> Network:
    config = ModelConfig(config={"model_type": model_type, **MODELS[model_type]})
    options: Any = {"pooling": "mean", "attention": "sdpa", "lora": True, "seed": 3, "max_length": 32}
    with parameters_on_disk() if on_disk else nullcontext():
        return load_network(
            config, word_tokenizer(VOCABULARY), language_model=language_model, empty=empty, **options
        ).eval()


def outline(network: Network) -> list[tuple[Any, ...]]:
    """All that is known of parameters, of which tied ones have several names, and of buffers, but what they hold."""
    parameters = network.named_parameters(remove_duplicate=False)
    tensors = [*parameters, *network.named_buffers()]
    first: dict[int, str] = {}
    return [(n, first.setdefault(id(t), n), t.shape, t.dtype, t.requires_grad) for n, t in tensors]


@pytest.mark.parametrize(("model_type", "language_model"), KINDS)
def test_an_empty_network_lacks_nothing_but_numbers(model_type: str, language_model: bool) -> None:
    full, empty = load(model_type, language_model), load(model_type, language_model, empty=True)
    assert outline(empty) == outline(full)
    assert all(tensor.is_meta for tensor in [*empty.parameters(), *empty.buffers()])
    assert empty.embedding == full.embedding
    assert empty.adapted_names("lora") == full.adapted_names("lora")
    config = Config.model_validate({"meta": {"algorithm": "fomaml", "adapt": "lora"}})
    assert Sizes.of(empty, config) == Sizes.of(full, config)
    assert FlopCounter.of(empty, config.meta) == FlopCounter.of(full, config.meta)


def test_an_empty_network_of_a_pretrained_model_grows_with_the_tokenizer(tmp_path: Path) -> None:
    load("gpt2", True).model.save_pretrained(tmp_path)
    options: Any = {"pooling": "mean", "attention": "sdpa", "lora": False, "language_model": True, "seed": 0}
    grown = [
        load_network(ModelConfig(name_or_path=str(tmp_path)), word_tokenizer(VOCABULARY + 3), empty=empty, **options)
        for empty in (False, True)
    ]
    assert outline(grown[1]) == outline(grown[0])
    assert len(grown[1].get_parameter(grown[1].embedding or "")) == VOCABULARY + 3


@pytest.mark.parametrize(("model_type", "language_model"), KINDS)
def test_a_seed_gives_the_same_weights_in_memory_and_on_disk(model_type: str, language_model: bool) -> None:
    """Those that transformers gives, the bare network made first."""
    network = load(model_type, language_model, on_disk=True)
    config = AutoConfig.for_model(model_type, **MODELS[model_type], vocab_size=VOCABULARY, pad_token_id=0)
    torch.manual_seed(3)
    expected: Any = AutoModel.from_config(config)
    pooler = {name: value for name, value in expected.named_parameters() if name.startswith("pooler.")}
    if language_model:
        expected = (AutoModelForMaskedLM if model_type == "bert" else AutoModelForCausalLM).from_config(config)
    for name, parameter in network.model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name
    assert network.unused.keys() == pooler.keys()
    assert all(torch.equal(network.unused[name], value) for name, value in pooler.items())
    plain = load(model_type, language_model)
    assert all(torch.equal(p, network.get_parameter(name)) for name, p in plain.named_parameters())


def test_a_disk_without_room_is_told_in_a_line() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"76800 bytes more cannot be had there .*: name another folder in TMPDIR$"):
            load("bert", True, on_disk=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# The workers


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    made = {size: World(size, tmp_path_factory.mktemp(f"world-{size}")) for size in (1, 2)}
    yield made
    for world in made.values():
        world.close()


def _start(model_type: str, language_model: bool) -> tuple[Any, list[Any]]:
    """All weights; and of each worker buffers, computation, and the scores of a task after adaptation."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    network = load(model_type, language_model, empty=rank > 0, on_disk=True)
    adapted = network.adapted_names("lora")
    config = EngineConfig(zero_stage=3)
    engine = ShardedEngine(network, config, adapted_names=adapted, weight_decay=0.0, device=CPU)
    (scores,) = engine.query_scores([task_batch(random_task())], inner_lr=0.1, inner_steps=2)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, (buffers, network.computation, scores))
    state = state_on_first_worker(engine)
    engine.close()
    return state and state.weights, found


@pytest.mark.parametrize(("model_type", "language_model"), KINDS)
def test_workers_that_made_nothing_have_what_the_first_one_made(
    worlds: dict[int, World], model_type: str, language_model: bool
) -> None:
    network = load(model_type, language_model)
    _, ((_, _, expected_scores),) = worlds[1].run(_start, model_type, language_model)
    weights, found = worlds[2].run(_start, model_type, language_model)
    assert weights.keys() == dict(network.named_parameters()).keys()
    assert all(torch.equal(weights[name], parameter) for name, parameter in network.named_parameters())
    expected_buffers = dict(network.named_buffers())
    assert len(found) == 2
    for buffers, computation, scores in found:
        assert buffers.keys() == expected_buffers.keys()
        assert all(torch.equal(buffers[name], buffer) for name, buffer in expected_buffers.items())
        assert computation == network.computation == "packed"
        assert torch.allclose(scores, expected_scores, atol=1e-6)
    if model_type == "llama":
        assert any("inv_freq" in name for name in expected_buffers)
