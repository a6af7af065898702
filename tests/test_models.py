"""Networks: features do not depend on padding, adapters are weights, and an export is what was trained."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from distmeta.compute.batch import collate_tokens
from distmeta.config import Config, load_config
from distmeta.engine.config import EngineConfig
from distmeta.errors import UserError
from distmeta.models import Network, load_network
from distmeta.models.config import ModelConfig
from distmeta.models.export import export
from distmeta.models.load import (
    load_model_config,
    max_sequence_length,
    model_kind,
    network_without_weights,
    resolve_pooling,
)
from distmeta.setup import resolve
from distmeta.train.loop import say_computation
from tests.helpers import random_task, task_batch, tiny_network, word_tokenizer

CPU = torch.device("cpu")
SIZES = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}
SIZES |= {"opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}}
SIZES |= {"mpnet": SIZES["bert"], "convbert": SIZES["bert"], "squeezebert": SIZES["bert"] | {"embedding_size": 32}}


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(50)


def load(
    model_type, tokenizer, *, lora=False, language_model=True, pooling="mean", attention="sdpa", **options
) -> Network:
    config = ModelConfig(config={"model_type": model_type, **SIZES[model_type]})
    return load_network(
        config,
        tokenizer,
        pooling=pooling,
        attention=attention,
        lora=lora,
        language_model=language_model,
        seed=0,
        **options,
    ).eval()


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("pooling", ["mean", "mask", "first", "last"])
def test_features_do_not_depend_on_the_padding(model_type, pooling):
    """Case D2: the same alone and in a padded batch."""
    network = tiny_network(model_type, attention="sdpa").eval()
    network.pooling = pooling
    parameters = dict(network.named_parameters())
    examples = random_task().support
    whole = network.features(parameters, task_batch(random_task()).support)
    for example, feature in zip(examples, whole, strict=True):
        alone = collate_tokens([example.input_ids], 0, CPU, [example.mask_position])
        assert torch.allclose(network.features(parameters, alone)[0], feature, atol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_logits_at_positions_are_those_of_the_whole_model(model_type):
    network = tiny_network(model_type).eval()
    batch = task_batch(random_task()).support
    positions = (torch.tensor([0, 0, 3]), torch.tensor([1, 2, 1]))
    logits = network.language_model_logits(dict(network.named_parameters()), batch, positions)
    whole = network.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert torch.allclose(logits, whole[positions], atol=1e-6)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("language_model", [False, True])
def test_an_export_is_loaded_whole_and_computes_the_same(model_type, lora, language_model, tokenizer, tmp_path):
    """Case C3, and the tied embedding; hidden states are equal to the bit."""
    network = load(model_type, tokenizer, lora=lora, language_model=language_model)
    parameters = {n: torch.randn_like(p) * 0.1 + p.detach() for n, p in network.named_parameters()}
    export(network, parameters, tokenizer, tmp_path)

    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    own = AutoTokenizer.from_pretrained(tmp_path)
    assert own.pad_token_id == loaded.config.pad_token_id == tokenizer.pad_token_id
    texts = ["w1 w2 w3", "w4", "w5 w6 zzz w7 w8 w9", "w1 [MASK] w2", "w30 w31"]
    tokens = own(texts, return_tensors="pt", padding=True)
    batch = collate_tokens([tokenizer(text)["input_ids"] for text in texts], tokenizer.pad_token_id, CPU)
    hidden = torch.func.functional_call(network, network.merged(parameters), ("hidden", batch))
    arguments = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    assert torch.equal(loaded.eval()(**arguments).last_hidden_state, hidden)

    if language_model:
        auto = AutoModelForMaskedLM if model_type == "bert" else AutoModelForCausalLM
        whole, report = auto.from_pretrained(tmp_path, subfolder="language-model", output_loading_info=True)
        assert not any(report.values())
        assert whole.get_input_embeddings().weight.data_ptr() == whole.get_output_embeddings().weight.data_ptr()
        everywhere = torch.nonzero(batch.attention_mask, as_tuple=True)
        logits = network.language_model_logits(parameters, batch, everywhere)
        assert torch.allclose(whole.eval()(**arguments).logits[everywhere], logits, atol=1e-5)
    else:
        assert not (tmp_path / "language-model").exists()


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_adapters_change_nothing_until_they_are_trained(model_type, tokenizer):
    plain, adapted = load(model_type, tokenizer), load(model_type, tokenizer, lora=True)
    batch = task_batch(random_task()).support
    batch.input_ids.remainder_(50)
    assert torch.equal(
        plain.features(dict(plain.named_parameters()), batch), adapted.features(dict(adapted.named_parameters()), batch)
    )
    names = adapted.adapted_names("lora")
    assert len(names) == 2 * 2 * 2  # layers, projections, factors
    assert all(name.startswith("lora.") for name in names)


def test_fast_weights_are_those_that_features_depend_on(tokenizer):
    network = load("bert", tokenizer)
    assert not network.adapted_names("head")
    every = network.adapted_names("all")
    assert every
    assert not [name for name in every if "cls" in name]
    assert "model.bert.embeddings.word_embeddings.weight" in every


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "opt"])
def test_what_is_above_a_layer_and_what_below(model_type):
    """GPT-2 has a final norm behind its layers, OPT in front of them."""
    config = ModelConfig(config={"model_type": model_type, **SIZES[model_type]})
    network = network_without_weights(config, lora=False, language_model=False)
    final = {"bert": set(), "gpt2": {"model.ln_f.weight", "model.ln_f.bias"}}.get(
        model_type, {"model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias"}
    )
    top = set(network.adapted_names("last_k", 1))
    assert {name for name in top if ".1." not in name} == final
    network.freeze(1)
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == top


def test_no_row_of_the_embedding_is_left_out_where_the_model_looks_at_ids(tokenizer):
    assert load("bert", tokenizer, computation="bucketed").embedding
    assert load("mpnet", tokenizer, computation="bucketed", attention="eager").embedding is None


def test_the_embedding_grows_with_the_tokenizer(tokenizer, tmp_path):
    network = load("gpt2", tokenizer)
    export(network, dict(network.named_parameters()), tokenizer, tmp_path)
    larger = AutoTokenizer.from_pretrained(tmp_path)
    larger.add_tokens(["new"])
    grown = load_network(
        ModelConfig(name_or_path=str(tmp_path)),
        larger,
        pooling="mean",
        attention="sdpa",
        lora=False,
        language_model=True,
        seed=0,
    )
    assert len(grown.model.get_input_embeddings().weight) == len(larger) == len(tokenizer) + 1


def test_kinds():
    configs = [load_model_config(ModelConfig(config={"model_type": each})) for each in ("bert", "gpt2", "roberta")]
    assert [model_kind(config) for config in configs] == ["encoder", "decoder", "encoder"]


SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize(
    ("model_type", "limit"),
    # RoBERTa's kind, of many names, counts from behind the number of the padding.
    [("bert", 66), ("gpt2", 66), ("roberta", 64), ("camembert", 64), ("mpnet", 64), ("data2vec-text", 64), ("esm", 64)],
)
def test_the_longest_text_that_a_model_takes(model_type, limit):
    config = SIZES["gpt2"] | {"n_positions": 66} if model_type == "gpt2" else SMALL | {"max_position_embeddings": 66}
    config |= {"model_type": model_type, "pad_token_id": 1}
    network = network_without_weights(ModelConfig(config=config), lora=False, language_model=False)
    assert max_sequence_length(network.base) == limit
    model = AutoModel.from_config(load_model_config(ModelConfig(config=config)))
    for length in (limit, limit + 1):
        ids = torch.full((1, length), 5)
        if length == limit:
            model(input_ids=ids)
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=ids)


def test_what_has_no_limit_is_not_limited():
    """XLNet says -1."""
    config = ModelConfig(config={"model_type": "xlnet", "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64})
    assert max_sequence_length(network_without_weights(config, lora=False, language_model=False).base) is None


@pytest.mark.parametrize(
    ("model_type", "taken", "reason"),
    [
        ("bert", "packed", ""),
        ("mpnet", "bucketed", "it computes otherwise on packed texts than on padded ones"),
        ("convbert", "plain", "it computes otherwise on packed texts than on padded ones, and it sees the padding"),
    ],
)
def test_how_texts_go_together_is_chosen_and_said(model_type, taken, reason, tokenizer, caplog):
    options = {"attention": "eager", "language_model": False, "max_length": 32}
    network = load(model_type, tokenizer, **options)
    assert (network.computation, network.fallback_reason) == (taken, reason)
    say_computation(Config(), network)
    since = f" for {model_type}: {reason}" if reason else ""
    assert caplog.messages == [f"engine.computation: auto takes {taken}{since}"]
    say_computation(Config(engine=EngineConfig(tasks_at_a_time=4)), network)
    assert ("tasks do not go side by side" in caplog.messages[-1]) == (taken != "packed")
    for wanted in ("packed", "bucketed"):
        if taken == "plain" or (taken, wanted) == ("bucketed", "packed"):
            with pytest.raises(UserError, match=r"engine.computation: .* use auto"):
                load(model_type, tokenizer, computation=wanted, **options)


def test_that_tasks_go_one_at_a_time_is_said(tokenizer, caplog):
    network = load("bert", tokenizer, max_length=32)
    network.separates_tasks = False
    say_computation(Config(engine=EngineConfig(computation="packed")), network)
    assert caplog.messages == [
        "engine.computation: tasks go one at a time, since the model's layers do not keep their weights apart"
    ]


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "distilbert", "electra", "albert"])
def test_only_dropout_that_is_there_makes_a_network_random(model_type):
    """Heads for classification, which no network here has, have rates in the configuration too."""
    config = AutoConfig.for_model(model_type)
    for name, value in vars(config).items():
        if "drop" in name and value and not any(head in name for head in ("summary", "classif", "qa_")):
            setattr(config, name, 0.0)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    network = Network(model, "mean").train()
    assert not network.is_random
    rate = {"gpt2": "attn_pdrop", "distilbert": "dropout"}.get(model_type, "hidden_dropout_prob")
    setattr(network.model.config, rate, 0.1)
    assert network.is_random
    assert not network.eval().is_random


def test_a_model_that_calls_its_pooler_does_without(tokenizer):
    network = load("squeezebert", tokenizer, attention="eager", language_model=False)
    assert not [name for name, _ in network.named_parameters() if "pooler" in name]
    assert "pooler.dense.weight" in network.unused
    features = network.features(dict(network.named_parameters()), collate_tokens([[5, 6], [7]], 0, CPU))
    assert features.shape == (2, 32)


def test_pooling_is_chosen_by_what_there_is():
    assert resolve_pooling("auto", "encoder", smlmt=True) == "mask"
    assert resolve_pooling("auto", "encoder", smlmt=False) == "mean"
    assert resolve_pooling("auto", "decoder", smlmt=True) == "mean"
    with pytest.raises(UserError, match=r"model.pooling: mask"):
        resolve_pooling("mask", "encoder", smlmt=False)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"name_or_path": "/nowhere/at-all"}, "model.name_or_path"),
        ({"config": {"model_type": "no-such-type"}}, "model.config"),
        ({"config": {"model_type": "bert", "hiden_size": 32}}, "model.config.hiden_size: unknown key"),
        ({"config": {"model_type": "t5"}}, "model: t5 has an encoder and a decoder"),
        # Characters, by hashes of their numbers.
        ({"config": {"model_type": "canine"}}, "model: canine has no embedding with a row for each token"),
        ({"config": {"model_type": "vit"}}, "model: vit has no embedding with a row for each token"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_a_line(options, key):
    with pytest.raises(UserError) as refusal:
        network_without_weights(ModelConfig(**options), lora=False, language_model=False)
    assert str(refusal.value).startswith(key)
    assert len(str(refusal.value).splitlines()) == 1


def test_what_is_left_to_the_software_is_filled_in():
    """Case A1: second order gets an attention that has a second derivative, and the file says so."""
    config = resolve(load_config(None, ["meta.algorithm=maml"]))
    assert (config.meta.algorithm, config.model.attention, config.model.pooling) == ("maml", "eager", "mask")
    assert config.meta.lm_weight == 1.0
    assert config.evaluate.n_way == config.tasks.n_way
    config = resolve(load_config(None, ["model.config={model_type: gpt2, n_positions: 64}"]))
    assert (config.model.attention, config.model.pooling, config.tokenizer.max_length) == ("sdpa", "mean", 64)
