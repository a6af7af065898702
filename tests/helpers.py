"""Small real networks and tasks that several tests share."""

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, GPT2Config, PreTrainedTokenizerFast

from distmeta.compute.batch import TaskBatch, collate_task
from distmeta.engine.deepspeed_engine import Engine
from distmeta.engine.state import EngineState
from distmeta.meta.config import MetaConfig
from distmeta.models import Network
from distmeta.recipes import filled_meta
from distmeta.tasks.episode import Example, Task

VOCABULARY = 600


def meta_config(**settings: Any) -> MetaConfig:
    """Settings of meta-learning, those that are left out as for a new model."""
    return filled_meta(MetaConfig(**settings), is_loaded=False)


def tiny_network(model_type: str, *, dropout: float = 0.0, lora_rank: int = 0, attention: str = "eager") -> Network:
    """A language model of two layers, 32 wide, with weights that are the same every time."""
    torch.manual_seed(0)
    if model_type == "bert":
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        model = AutoModelForMaskedLM.from_config(config, attn_implementation=attention)
    else:
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=64,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            resid_pdrop=dropout,
            bos_token_id=1,
            eos_token_id=1,
        )
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    network = Network(model, "mean", lora_rank=lora_rank, lora_alpha=8.0)
    if lora_rank:
        # As after some training: with B at zero half of the arithmetic would go untested.
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith("/b"):
                    parameter.normal_(std=0.05)
    return network


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: `w0`, `w1`, and so on."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(vocabulary - 5))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )


def random_task(index: int = 0, n_way: int = 3, k_shot: int = 2, query_per_class: int = 3) -> Task:
    """A task of random tokens, of sentences that differ in length."""
    random = np.random.default_rng(index)

    def example(label: int, number: int) -> Example:
        # A token of its own a class, so that there is something to learn.
        ids = [2, 10 + label, *random.integers(20, VOCABULARY, random.integers(3, 20)), 3]
        return Example(f"{label}.{number}", label, f"text {label} {number}", tuple(int(i) for i in ids), 1)

    support = tuple(example(label, number) for label in range(n_way) for number in range(k_shot))
    query = tuple(example(label, k_shot + number) for label in range(n_way) for number in range(query_per_class))
    return Task(index, "train", tuple("abcdefgh"[:n_way]), support, query)


def task_batch(task: Task) -> TaskBatch:
    """The task as tensors on the CPU."""
    return collate_task(task, 0, torch.device("cpu"))


def in_memory(state: EngineState) -> EngineState:
    """A copy of a state, all of it in memory."""
    groups = (state.weights, state.exp_avg, state.exp_avg_sq)
    return EngineState(state.step, *({name: tensor.clone() for name, tensor in group.items()} for group in groups))


def state_on_first_worker(engine: Engine) -> EngineState | None:
    """An engine's state as it is now, all in memory: on rank 0, and None elsewhere. Every worker has to call it."""
    state = engine.state()
    if torch.distributed.get_rank() == 0:
        return in_memory(state)
    state.take_part()
    return None
