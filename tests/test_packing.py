"""Packed, bucketed and padded texts give the same, whatever their lengths, in double precision."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call
from transformers import AutoConfig, AutoModel

from distmeta.compute.batch import TaskBatch, TokenBatch, collate_tokens, join
from distmeta.compute.packing import ignores_padding, what_hinders_packing
from distmeta.meta import algorithm_class
from distmeta.meta.config import MetaConfig
from distmeta.models import Network
from distmeta.models.load import can_leave_rows_out
from tests.helpers import VOCABULARY, tiny_network
from tests.meta_cases import relative_error, whole
from tests.references import hidden_states

CPU = torch.device("cpu")
NETWORKS = {name: tiny_network(name, attention="sdpa").double().eval() for name in ("bert", "gpt2")}
EAGER = {name: tiny_network(name, attention="eager").double().eval() for name in NETWORKS}
LENGTHS = st.lists(st.integers(1, 24), min_size=1, max_size=9)
FEW = settings(max_examples=12, deadline=None, derandomize=True)


def texts(lengths: list[int], seed: int = 0) -> TokenBatch:
    """Random texts of these lengths, padded."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return collate_tokens(rows, 0, CPU, [length // 2 for length in lengths])


@FEW
@given(model_type=st.sampled_from(["bert", "gpt2"]), lengths=LENGTHS)
def test_hidden_states_of_each_text_are_those_it_has_alone(model_type, lengths):
    network, batch = NETWORKS[model_type], texts(lengths)
    parameters = dict(network.named_parameters())
    network.computation = "packed"
    with torch.no_grad():
        row = functional_call(network, parameters, ("hidden", batch))
        padded = hidden_states(network, parameters, batch)
        assert row.shape == (1, sum(lengths), network.hidden_size)
        for number, start in enumerate(batch.layout.starts.tolist()):
            part = row[0, start : start + lengths[number]]
            alone = hidden_states(network, parameters, batch.take(torch.tensor([number])))[0]
            torch.testing.assert_close(part, alone, rtol=1e-10, atol=1e-11)
            torch.testing.assert_close(part, padded[number, : lengths[number]], rtol=1e-10, atol=1e-11)


@FEW
@given(
    model_type=st.sampled_from(["bert", "gpt2"]),
    pooling=st.sampled_from(["mean", "mask", "first", "last"]),
    lengths=LENGTHS,
)
def test_features_do_not_depend_on_how_texts_are_put_together(model_type, pooling, lengths):
    """Against the texts one by one."""
    network, batch = NETWORKS[model_type], texts(lengths)
    parameters = dict(network.named_parameters())
    wanted = []
    with torch.no_grad():
        for number in range(len(lengths)):
            alone = hidden_states(network, parameters, batch.take(torch.tensor([number])))[0]
            at = {"first": 0, "last": -1, "mask": int(batch.mask_positions[number])}
            wanted.append(alone.mean(0) if pooling == "mean" else alone[at[pooling]])
        for computation in ("plain", "packed", "bucketed"):
            network.pooling, network.computation = pooling, computation
            found = network.features(parameters, batch)
            torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-10, atol=1e-11)


@settings(FEW, max_examples=20)
@given(
    model_type=st.sampled_from(["bert", "gpt2"]),
    name=st.sampled_from(["fomaml", "maml", "reptile", "anil", "protonet"]),
    lengths=st.lists(st.integers(1, 24), min_size=9, max_size=12),
)
def test_meta_gradients_do_not_depend_on_how_texts_are_put_together(model_type, name, lengths):
    """Nor on whether tasks go side by side."""
    network = (EAGER if name == "maml" else NETWORKS)[model_type]
    network.pooling = "mean"
    parameters = dict(network.named_parameters())
    halves = [torch.arange(len(lengths[part])) % 3 for part in (slice(0, 5), slice(5, None))]
    tasks = [
        TaskBatch(texts(order[:5], seed), halves[0], texts(order[5:], seed + 1), halves[1], 3)
        for seed, order in ((1, lengths), (3, lengths[::-1]))
    ]
    algorithm = algorithm_class(name)(network, MetaConfig(inner_lr=0.3, inner_steps=3))
    found = []
    for network.computation in ("plain", "packed", "bucketed"):
        each = [whole(algorithm.task_gradient(parameters, task), parameters) for task in tasks]
        found.append({key: each[0][key] + each[1][key] for key in each[0]})
    network.computation = "packed"
    if algorithm.takes_tasks:
        found.append(whole(algorithm.task_gradient(parameters, join(tasks)), parameters))
    for other in found[1:]:
        assert relative_error(other, found[0])[0] < 1e-9


def test_texts_of_one_length_and_a_text_alone():
    for network in NETWORKS.values():
        parameters, network.pooling = dict(network.named_parameters()), "mean"
        for lengths in ([5, 5, 5, 5, 5], [7], [1, 1]):
            found = []
            for network.computation in ("plain", "packed", "bucketed"):
                found.append(network.features(parameters, texts(lengths)))
            torch.testing.assert_close(found[1], found[0])
            torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_logits_do_not_depend_on_how_texts_are_put_together(model_type):
    network, batch = NETWORKS[model_type], texts([3, 9, 1, 6])
    parameters = dict(network.named_parameters())
    positions = (torch.tensor([3, 0, 1, 1]), torch.tensor([5, 2, 0, 8]))
    network.computation = "plain"
    plain = network.language_model_logits(parameters, batch, positions)
    network.computation = "packed"
    torch.testing.assert_close(network.language_model_logits(parameters, batch, positions), plain)
    assert network.base.config._attn_implementation == "sdpa"  # as it was


SMALL = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "bert": SMALL | {"intermediate_size": 64},
    "roberta": SMALL | {"intermediate_size": 64, "max_position_embeddings": 40, "pad_token_id": 1},
    "distilbert": {"vocab_size": 120, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "albert": SMALL | {"intermediate_size": 64, "embedding_size": 16},
    "gpt2": {"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "llama": SMALL | {"intermediate_size": 64, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_families_that_can_be_packed(attention):
    """Positions behind the padding's index, heads that share a key, layers that share weights: as each text alone."""
    ids = [[5 + (7 * place + length) % 110 for place in range(length)] for length in (9, 2, 6, 1)]
    for model_type, options in FAMILIES.items():
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.for_model(model_type, **options), attn_implementation=attention)
        assert not what_hinders_packing(model.base_model, 16), model_type
        network = Network(model.double().eval(), "mean", computation="packed")
        with torch.no_grad():
            found = network.features(dict(network.named_parameters()), collate_tokens(ids, 0, CPU))
            for text, feature in zip(ids, found, strict=True):
                alone = model(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text)))
                wanted = alone.last_hidden_state[0].mean(0)
                # Llama's own eager attention rounds its weights to fp32.
                torch.testing.assert_close(feature, wanted, rtol=1e-6, atol=1e-6, msg=model_type)


def test_what_cannot_be_packed_is_found_out():
    """DeBERTa's attention is its own; a window of attention has to hold a text; unknown lengths are not risked."""
    deberta = AutoConfig.for_model(
        "deberta-v2", **SMALL, intermediate_size=64, relative_attention=True, pos_att_type=["p2c", "c2p"]
    )
    assert what_hinders_packing(AutoModel.from_config(deberta), 16).startswith("it computes otherwise")
    bert = NETWORKS["bert"].base
    assert not what_hinders_packing(bert, 16)
    assert what_hinders_packing(bert, None) == "the longest text is not known"
    window = AutoModel.from_config(
        AutoConfig.for_model("mistral", **SMALL, intermediate_size=64, num_key_value_heads=2, sliding_window=20)
    )
    assert not what_hinders_packing(window, 8)
    assert what_hinders_packing(window, 16).startswith("its window of attention, 20 tokens")
    broken = AutoModel.from_config(AutoConfig.for_model("bert", **FAMILIES["bert"]))
    broken.encoder.layer[1].attention.self.forward = lambda hidden, *_, **__: (hidden.flip(1), None)
    assert what_hinders_packing(broken, 16)
    takes_no_positions = AutoModel.from_config(AutoConfig.for_model("bert", **FAMILIES["bert"]))
    forward = takes_no_positions.forward
    takes_no_positions.forward = lambda input_ids, attention_mask: forward(input_ids, attention_mask)
    assert what_hinders_packing(takes_no_positions, 16) == "it does not take packed texts"


def test_what_changes_the_scores_of_attention_is_not_packed():
    """Gemma 2 bounds its scores, which nobody would see on weights that make small ones."""
    options = SMALL | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    gemma = AutoModel.from_config(AutoConfig.for_model("gemma2", **options))
    assert what_hinders_packing(gemma, 16) == "its attention takes softcap"
    own_mask = AutoModel.from_config(AutoConfig.for_model("bert", **FAMILIES["bert"]))
    inner = own_mask.encoder.layer[0].attention.self
    inner.register_forward_pre_hook(
        lambda _, hidden, options: (hidden[:1], options | {"attention_mask": torch.zeros(1, 1, 1, hidden[0].shape[1])}),
        with_kwargs=True,
    )
    assert what_hinders_packing(own_mask, 16) == "its attention takes a mask of its own"


def test_whether_padding_is_ignored_is_tried_out():
    """ConvBERT's convolutions see it, and MobileBERT's embedding, in which the next token's has a part."""
    conv = AutoConfig.for_model("convbert", **SMALL, intermediate_size=64, embedding_size=16)
    assert not ignores_padding(AutoModel.from_config(conv))
    mobile = AutoModel.from_config(AutoConfig.for_model("mobilebert", **SMALL, intermediate_size=64))
    before = {name: value.clone() for name, value in mobile.state_dict().items()}
    assert not before["embeddings.word_embeddings.weight"][0].any()  # as a new model has it, so that nothing shows
    assert not ignores_padding(mobile)
    assert all(torch.equal(value, before[name]) for name, value in mobile.state_dict().items())
    for network in NETWORKS.values():
        assert ignores_padding(network.base)


@pytest.mark.parametrize(("model_type", "padding"), [("llama", 119), ("roberta", 1), ("roberta", 20)])
def test_the_number_of_the_padding_may_be_any(model_type, padding):
    """A row that a task leaves out (as real vocabularies have it), and one from which RoBERTa counts positions."""
    torch.manual_seed(0)
    options = FAMILIES[model_type] | {"pad_token_id": padding}
    network = Network(AutoModel.from_config(AutoConfig.for_model(model_type, **options)).double().eval(), "mean")
    parameters = dict(network.named_parameters())
    texts = [[5 + (7 * place + length) % 110 for place in range(length)] for length in (9, 2, 6, 1, 4, 3)]
    batch = collate_tokens(texts, padding, CPU)
    labels = torch.arange(6) % 3
    algorithm = algorithm_class("fomaml")(network, MetaConfig(inner_lr=0.3, inner_steps=3))
    found = []
    for network.computation in ("plain", "packed", "bucketed"):
        result = algorithm.task_gradient(parameters, TaskBatch(batch, labels, batch, labels, 3))
        found.append(whole(result, parameters))
    for other in found[1:]:
        assert relative_error(other, found[0])[0] < 1e-6


def test_rows_of_the_embedding_that_a_task_does_not_use_stay_out():
    """The padding's number is its own row's; no other row is left out."""
    for model_type, network in NETWORKS.items():
        network.computation = "packed"
        parameters = dict(network.named_parameters())
        for ids in ([[0, 5, 9], [9, 7]], [[5, 9], [7, 3]], [[599, 0]], [[2]]):
            batch = collate_tokens(ids, 0, CPU)
            local = network.localized(parameters, [batch, replace(batch)])
            assert set(local.rows.tolist()) <= {token for row in ids for token in row} | {0}
            for part in local.batches:
                assert torch.equal(local.rows[part.input_ids], batch.input_ids)
            theta = {**local.parameters, local.embedding: local.parameters[local.embedding].detach().requires_grad_()}
            gradient = torch.autograd.grad(
                network.features(theta, local.batches[0]).square().sum(), theta[local.embedding]
            )
            whole_theta = {n: v.detach().requires_grad_(n == local.embedding) for n, v in parameters.items()}
            wanted = torch.autograd.grad(
                network.features(whole_theta, batch).square().sum(), whole_theta[local.embedding]
            )[0]
            found = torch.zeros_like(wanted).index_add_(0, local.rows, gradient[0])
            torch.testing.assert_close(found, wanted, msg=lambda text: f"{model_type} {ids}: {text}")  # noqa: B023


LOOK_AT_IDS = {
    "esm": SMALL | {"intermediate_size": 64, "token_dropout": True, "mask_token_id": 110, "pad_token_id": 0},
    "mpnet": SMALL | {"intermediate_size": 64, "pad_token_id": 0},
    "gemma3n_text": SMALL
    | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "hidden_size_per_layer_input": 8}
    | {"vocab_size_per_layer_input": 120, "laurel_rank": 4, "num_kv_shared_layers": 0, "altup_num_inputs": 2},
}
"""Scales by how many masks there are, counts positions from an id, has a second table of the same ids."""


@pytest.mark.parametrize("model_type", [*FAMILIES, *LOOK_AT_IDS])
def test_models_that_look_at_ids_keep_all_rows_of_the_embedding(model_type):
    torch.manual_seed(0)
    options = (FAMILIES | LOOK_AT_IDS)[model_type]
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **options), attn_implementation="eager")
    hindered = what_hinders_packing(model, 30)
    network = Network(model.train(), "mean", computation="bucketed" if hindered else "packed")
    assert can_leave_rows_out(network) == (model_type in FAMILIES)
    assert network.training
