"""Making a network: from a folder, a hub name, or a Hugging Face configuration."""

import difflib
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from distmeta.compute.batch import side_by_side
from distmeta.compute.packing import ignores_padding, position_offset, short_texts, what_hinders_packing
from distmeta.errors import UserError, first_line, one_line
from distmeta.models.config import ModelConfig
from distmeta.models.fit import read_weights
from distmeta.models.folder import check_folder
from distmeta.models.network import Computation, Network, Parameters, Pooling
from distmeta.models.weight_files import find_weights

Kind = Literal["encoder", "decoder", "features"]

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def model_kind(config: PretrainedConfig) -> Kind:
    """encoder: has a masked language model; decoder: a causal one; features: neither."""
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return "encoder"
    return "decoder" if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else "features"


def load_model_config(config: ModelConfig) -> PretrainedConfig:
    """The Hugging Face configuration of the model, without weights.

    Raises:
        UserError: nothing loadable is at `model.name_or_path`, or `model.config` does not make a model.
    """
    try:
        if (source := config.source) is not None:
            check_folder(source)
            loaded = AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code)
        else:
            _refuse_unknown_keys(config.config)
            loaded = AutoConfig.for_model(**config.config)
    except UserError:
        raise
    except Exception as error:  # whatever a hub, a file system or a model's own code may raise
        key = "name_or_path" if config.name_or_path is not None else "config"
        raise UserError(f"model.{key}: {first_line(error)}") from None
    if loaded.is_encoder_decoder:
        raise UserError(f"model: {loaded.model_type} has an encoder and a decoder; choose a model that is one of them")
    if getattr(loaded, "quantization_config", None) is not None:
        raise UserError(
            f"model.name_or_path: {config.name_or_path} is quantized, and training needs the weights that it was made "
            "from"
        )
    return loaded


def _refuse_unknown_keys(config: dict[str, Any]) -> None:
    name = config["model_type"]
    if name not in CONFIG_MAPPING:
        near = difflib.get_close_matches(name, list(CONFIG_MAPPING), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(one_line(f"model.config.model_type: {name} is no model type that transformers knows{hint}"))
    default = AutoConfig.for_model(name)
    for key in config:
        if not hasattr(default, key):
            near = difflib.get_close_matches(key, dir(default), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(one_line(f"model.config.{key}: unknown key of a {name} configuration{hint}"))


def network_without_weights(
    config: ModelConfig, *, lora: bool, language_model: bool, vocab_size: int | None = None
) -> Network:
    """The network on torch's meta device, which allocates nothing.

    Its attention (`base.config._attn_implementation`) is sdpa where the model has it. `vocab_size` is that of a new
    model, whose tokenizer need not be there yet; a loaded one has its own.

    Raises:
        UserError: the model cannot be what the settings ask of it.
    """
    hf_config = load_model_config(config)
    kind = model_kind(hf_config)
    if language_model and kind == "features":
        raise UserError(f"meta.lm_weight: {hf_config.model_type} has no language model; set it to 0")
    if vocab_size is not None and config.name_or_path is None:
        hf_config.vocab_size, hf_config.pad_token_id = vocab_size, 0
    auto = language_model_class(hf_config) if language_model else AutoModel
    with torch.device("meta"):
        try:
            model = auto.from_config(hf_config, trust_remote_code=config.trust_remote_code)
        except Exception as error:  # whatever a model's own code may raise
            raise UserError(f"model.config: {first_line(error)}") from None
        _word_embedding(model)
        if not language_model:
            _take_pooler(model)
        return Network(model, "mean", lora_rank=config.lora_rank if lora else 0, lora_targets=config.lora_targets)


def _word_embedding(model: PreTrainedModel) -> torch.Tensor:
    """The table of what each token is embedded as.

    Raises:
        UserError: there is none.
    """
    try:
        table = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:
        table = None
    if table is None or table.ndim != 2:
        kind = model.config.model_type
        raise UserError(f"model: {kind} has no embedding with a row for each token; choose a model that has one")
    return table


def _take_pooler(model: PreTrainedModel) -> Parameters:
    """Takes the pooler, which no loss reaches, out of a network without language model, and returns its tensors."""
    pooler = getattr(model, "pooler", None)
    if not isinstance(pooler, nn.Module):
        return {}
    model.register_module("pooler", nn.Identity())  # some models call it whether it is there or not
    return {f"pooler.{name}": value for name, value in pooler.state_dict().items()}


def max_sequence_length(base: PreTrainedModel) -> int | None:
    """Most positions that the model can tell apart (tokens, special tokens included); None where there is no limit."""
    positions = getattr(base.config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return None
    return positions - position_offset(base)


def resolve_pooling(pooling: str, kind: Kind, smlmt: bool) -> Pooling:
    """The pooling that `model.pooling` stands for."""
    if pooling == "auto":
        return "mask" if smlmt and kind == "encoder" else "mean"
    if pooling == "mask" and not smlmt:
        raise UserError("model.pooling: mask needs SMLMT tasks; a labelled set hides no word (use auto or mean)")
    return pooling  # type: ignore[return-value]


def load_network(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pooling: Pooling,
    attention: str,
    lora: bool,
    language_model: bool,
    seed: int,
    computation: Literal["auto", "packed", "bucketed", "plain"] = "auto",
    max_length: int | None = None,
    checkpoints_activations: bool = False,
    tasks_side_by_side: bool = True,
    empty: bool = False,
) -> Network:
    """The network with its starting weights, in fp32 on the CPU.

    Args:
        config: which model.
        tokenizer: gives the vocabulary's size and the special ids; the embedding grows where it is too small.
        pooling: which hidden states are a text's features.
        attention: `eager` or `sdpa`.
        lora: whether to add adapters.
        language_model: whether to keep, or add, a language-modelling head.
        seed: fixes whatever weights are new.
        computation: how texts of different lengths go together; auto: packed where the model can, else bucketed where
            it ignores the padding, else plain.
        max_length: longest text (tokens).
        checkpoints_activations: whether activations are computed again on the way back instead of kept.
        tasks_side_by_side: whether they may go side by side, where they can, which copies of the weights are made for.
        empty: leave out what parameters and buffers hold, which are on torch's meta device then, for a worker that is
            given it by another one. The other one knows the computation, which is tried out on weights; here it is
            `plain`.

    Raises:
        UserError: the model cannot be loaded, or cannot be computed as wanted.
    """
    torch.manual_seed(seed)
    hf_config = load_model_config(config)
    if config.name_or_path is None:
        _fill_in(hf_config, tokenizer)
    with torch.device("meta") if empty else nullcontext():
        model, unused, remarks = _build_model(config, hf_config, attention, language_model, len(tokenizer), empty)
        wanted = "plain" if empty else computation
        chosen, reason = _choose_computation(model.base_model, wanted, max_length)  # type: ignore[arg-type]
        network = Network(
            model,
            pooling,
            computation=chosen,
            lora_rank=config.lora_rank if lora else 0,
            lora_alpha=config.lora_alpha,
            lora_targets=config.lora_targets,
            unused=unused,
        )
    network.special_tokens = _special_tokens(tokenizer)
    network.checkpoints_activations = checkpoints_activations
    network.fallback_reason = reason
    network.remarks = remarks
    if chosen != "plain" and not can_leave_rows_out(network):
        network.embedding = None
    network.separates_tasks = chosen == "packed" and tasks_side_by_side and can_separate_tasks(network)
    return network


def _choose_computation(base: PreTrainedModel, wanted: str, max_length: int | None) -> tuple[Computation, str]:
    """How texts go together, and why auto did not take the fastest way, if it did not: what works is tried out."""
    if wanted == "plain":
        return "plain", ""
    reason = what_hinders_packing(base, max_length) if wanted != "bucketed" else ""
    if wanted != "bucketed" and not reason:
        return "packed", ""
    if wanted == "packed":
        raise UserError(f"engine.computation: {base.config.model_type} cannot be packed: {reason}; use auto")
    if ignores_padding(base):
        return "bucketed", reason
    if wanted == "bucketed":
        raise UserError(f"engine.computation: {base.config.model_type} sees the padding; use auto")
    return "plain", f"{reason}, and it sees the padding"


@torch.no_grad()
def can_leave_rows_out(network: Network) -> bool:
    """Whether the network computes the same of a table that has only those rows of the word embedding that texts use:
    one that looks at the ids themselves may not. Tried out on short texts."""
    words, mode = network.base.get_input_embeddings(), network.training
    looked_up: list[torch.Tensor] = []  # in other tables, which may hold next to nothing yet
    hooks = [
        table.register_forward_pre_hook(lambda _, arguments: looked_up.append(arguments[0]))
        for table in network.model.modules()
        if isinstance(table, nn.Embedding) and table is not words
    ]
    network.eval()
    try:
        parameters: Parameters = dict(network.named_parameters())
        batch = short_texts(network.base)
        local = network.localized(parameters, [batch])
        all_rows = network.features(parameters, batch)
        few_rows = network.features(local.parameters, local.batches[0])
        half = len(looked_up) // 2
        is_same = all(map(torch.equal, looked_up[:half], looked_up[half:]))
        return is_same and bool(torch.allclose(few_rows, all_rows, atol=1e-6, rtol=1e-5))
    except Exception:  # whatever a model's own code makes of it
        return False
    finally:
        network.train(mode)
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def can_separate_tasks(network: Network) -> bool:
    """Whether two tasks with weights of their own come out side by side as each alone: tried out on short texts, on the
    CPU and in its way."""
    mode = network.training
    network.eval()
    try:
        batches = [short_texts(network.base, lengths) for lengths in ((7, 2), (5, 3, 4))]
        first: Parameters = dict(network.named_parameters())
        names = [name for name in network.adapted_names("all") if name != network.embedding]
        own = {name: torch.stack([first[name], 0.9 * first[name]]) for name in names}
        versions = [{**first, **{name: each[task] for name, each in own.items()}} for task in range(2)]
        alone = [network.features(weights, batch) for weights, batch in zip(versions, batches, strict=True)]
        together = network.features({**first, **own}, side_by_side(batches))
        return bool(torch.allclose(together, torch.cat(alone), atol=1e-4, rtol=1e-3))
    except Exception:  # whatever a model's own code makes of it
        return False
    finally:
        network.train(mode)


def _build_model(
    config: ModelConfig, hf_config: PretrainedConfig, attention: str, language_model: bool, rows: int, empty: bool
) -> tuple[PreTrainedModel, Parameters, list[str]]:
    """The model, with an embedding of at least `rows` rows, those tensors of the bare network that it lacks, and what
    is to be said of its weights."""
    unused: Parameters = {}
    if language_model:
        auto = language_model_class(hf_config)
        unused = _left_out(auto, config, hf_config, attention, empty)
        model, remarks = _build(auto, config, hf_config, attention, empty)
    else:
        model, remarks = _build(AutoModel, config, hf_config, attention, empty)
        unused = _take_pooler(model)  # the export puts it back
    own_rows = len(_word_embedding(model))
    if rows > own_rows:
        # Without weights there is no mean of them that could be given to the rows that are added.
        model.resize_token_embeddings(rows, mean_resizing=not empty)
        if config.name_or_path is not None:
            remarks.append(
                f"the tokenizer has {rows} tokens and the embedding of {config.name_or_path} {own_rows} rows: "
                f"{rows - own_rows} rows are new"
            )
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model, unused, remarks


def _left_out(auto: Any, config: ModelConfig, hf_config: PretrainedConfig, attention: str, empty: bool) -> Parameters:
    """The tensors of the bare network that its language model does without."""
    with torch.device("meta"):
        bare, whole = (_build(each, config, hf_config, attention, empty=True)[0] for each in (AutoModel, auto))
    held = whole.base_model.state_dict()
    if config.name_or_path is not None and not bare.state_dict().keys() - held.keys():
        return {}
    try:
        model, _ = _build(AutoModel, config, hf_config, attention, empty)
    except UserError:
        return {}  # of weights that are not there either it is said next
    return {name: value for name, value in model.state_dict().items() if name not in held}


def _build(
    auto: Any, config: ModelConfig, hf_config: PretrainedConfig, attention: str, empty: bool
) -> tuple[PreTrainedModel, list[str]]:
    """The model, and what is to be said of its weights."""
    arguments = {"attn_implementation": attention, "dtype": torch.float32}
    try:
        source = config.source
        if source is None or empty:
            return auto.from_config(hf_config, trust_remote_code=config.trust_remote_code, **arguments), []
        files = find_weights(source, hf_config)
        options: dict[str, Any] = {"attn_implementation": attention}
        if _has_file(source, "generation_config.json"):
            options["generation_config"] = GenerationConfig.from_pretrained(source)
        return read_weights(class_of(auto, config, hf_config), hf_config, files, **options)
    except UserError:
        raise
    except Exception as error:  # whatever a hub, a file system or a model's own code may raise
        key = "name_or_path" if config.name_or_path is not None else "config"
        raise UserError(f"model.{key}: {first_line(error)}") from None


def _has_file(name_or_path: str, name: str) -> bool:
    return cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False) is not None


def class_of(auto: Any, config: ModelConfig, hf_config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that one of transformers' `Auto` classes makes a model of."""
    with torch.device("meta"):
        return type(auto.from_config(hf_config, trust_remote_code=config.trust_remote_code))


def language_model_class(hf_config: PretrainedConfig) -> Any:
    """Which of transformers' `Auto` classes makes a language model of the configuration."""
    return AutoModelForMaskedLM if model_kind(hf_config) == "encoder" else AutoModelForCausalLM


def _fill_in(hf_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    hf_config.vocab_size = len(tokenizer)
    hf_config.pad_token_id = tokenizer.pad_token_id
    for name in ("bos", "eos", "cls", "sep", "mask"):
        if hasattr(hf_config, f"{name}_token_id"):
            setattr(hf_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of a tokenizer's special tokens, those included that it knows no role for."""
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder."""
    return AutoTokenizer.from_pretrained(folder, use_fast=True)
