"""Floating-point operations against what PyTorch counts, money, and versions."""

import platform
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertConfig, GPT2Config, PretrainedConfig

from distmeta.meta import algorithm_class
from distmeta.models import Network
from distmeta.tracking.config import TrackingConfig
from distmeta.tracking.cost import FlopCounter, NetworkSize, StepTokens, network_size, run_summary
from distmeta.tracking.versions import environment
from tests.helpers import meta_config, random_task, task_batch, tiny_network
from tests.meta_cases import CLASSES, with_head

WAY, SUPPORT, QUERY, LENGTH, INNER_STEPS = 5, 5, 15, 16, 2
TOKENS = StepTokens(
    support=SUPPORT * LENGTH, support_texts=SUPPORT, query=QUERY * LENGTH, query_texts=QUERY
)  # one task of texts of one length, so that nothing is padding

BERT = BertConfig(
    vocab_size=100,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
GPT2 = GPT2Config(
    vocab_size=100, n_embd=32, n_layer=3, n_head=4, n_positions=32, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for more, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Lora(nn.Module):
    """A frozen linear layer with a low-rank path beside it, as LoRA is computed."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(0.1 * torch.randn(base.in_features, 1))
        self.up = nn.Parameter(0.1 * torch.randn(1, base.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.down @ self.up


def flop_counter(size: NetworkSize, algorithm: str, adapt: str, inner_steps: int = INNER_STEPS) -> FlopCounter:
    depth, breadth = {"all": (1.0, 1.0), "lora": (1.0, 0.0), "head": (0.0, 0.0)}[adapt]
    return FlopCounter(
        size, meta_config(algorithm=algorithm, inner_steps=inner_steps), depth, breadth, algorithm == "maml"
    )


def counted_by_torch(config: PretrainedConfig, algorithm: str, adapt: str) -> tuple[int, int]:
    """Operations of one task, computed in the plainest way, and by our formula."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    size = network_size(model, config)
    if adapt == "lora":
        for layer in model.encoder.layer:
            layer.attention.self.query = Lora(layer.attention.self.query)
            layer.attention.self.value = Lora(layer.attention.self.value)
    support, query = torch.randint(5, 100, (SUPPORT, LENGTH)), torch.randint(5, 100, (QUERY, LENGTH))
    support_labels, query_labels = torch.arange(SUPPORT) % WAY, torch.arange(QUERY) % WAY
    meta = dict(model.named_parameters()) | {"head": nn.Parameter(0.1 * torch.randn(WAY, config.hidden_size))}
    adapted = {
        "all": list(meta),
        "lora": [name for name in meta if name.endswith(("head", "down", "up"))],
        "head": ["head"],
    }[adapt]
    second_order = algorithm == "maml"

    def features(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        body = {name: weight for name, weight in weights.items() if name != "head"}
        return functional_call(model, body, (ids,)).last_hidden_state.mean(dim=1)

    def fresh(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return weights if second_order else {k: v.detach().requires_grad_() for k, v in weights.items()}

    with FlopCounterMode(display=False) as counter:
        fast = fresh(meta)
        if adapt == "head":
            frozen = features(meta, support)
            frozen = frozen if second_order else frozen.detach()
        for _ in range(INNER_STEPS):
            support_features = frozen if adapt == "head" else features(fast, support)
            loss = cross_entropy(support_features @ fast["head"].T, support_labels)
            inputs = [fast[name] for name in adapted]
            gradients = torch.autograd.grad(loss, inputs, create_graph=second_order, allow_unused=True)
            steps = {
                name: fast[name] - 0.01 * gradient
                for name, gradient in zip(adapted, gradients, strict=True)
                if gradient is not None
            }
            fast = fresh(fast | steps)
        cross_entropy(features(fast, query) @ fast["head"].T, query_labels).backward()
    ours = flop_counter(size, algorithm, adapt).step(TOKENS)
    return counter.get_total_flops(), round(ours)


@pytest.mark.parametrize(
    ("config", "algorithm", "adapt"),
    [*product((BERT, GPT2), ("fomaml", "maml"), ("all", "head")), (BERT, "fomaml", "lora"), (BERT, "maml", "lora")],
    ids=lambda value: value if isinstance(value, str) else value.model_type,
)
def test_the_formula_agrees_with_what_torch_counts(config: PretrainedConfig, algorithm: str, adapt: str) -> None:
    true, ours = counted_by_torch(config, algorithm, adapt)
    # LoRA: the formula leaves out the adapters, and that nothing below the lowest ones needs a gradient.
    assert ours == pytest.approx(true, rel=0.03 if adapt == "lora" else 0.005)


def test_language_modelling_agrees_with_what_torch_counts() -> None:
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(BERT, attn_implementation="eager").eval()
    ids = torch.randint(5, 100, (8, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    size = network_size(model, BERT)
    assert size == network_size(AutoModel.from_config(BERT), BERT)
    tokens = StepTokens(lm=8 * LENGTH, lm_texts=8, lm_predictions=8 * LENGTH)
    ours = flop_counter(size, "fomaml", "all").step(tokens)
    # BERT's language-model head has one matrix of its own, width x width, before the vocabulary.
    transform = 6 * 32 * 32 * 8 * LENGTH
    assert ours + transform == pytest.approx(counter.get_total_flops(), rel=0.005)


def test_operations_add_up_over_tasks_and_steps() -> None:
    size = network_size(AutoModel.from_config(BERT), BERT)
    one = flop_counter(size, "fomaml", "all", 1).step(TOKENS)
    query_alone = flop_counter(size, "fomaml", "all", 1).step(StepTokens(query=TOKENS.query, query_texts=QUERY))
    three = flop_counter(size, "fomaml", "all", 3).step(TOKENS)
    assert three - query_alone == pytest.approx(3 * (one - query_alone))
    assert flop_counter(size, "fomaml", "all", 1).step(StepTokens()) == 0


def test_a_model_without_attention_costs_its_weights_alone() -> None:
    config = AutoConfig.for_model("mamba", vocab_size=100, hidden_size=32, num_hidden_layers=2)
    network = Network(AutoModel.from_config(config), "mean")
    counter = FlopCounter.of(network, meta_config(algorithm="fomaml", inner_steps=INNER_STEPS))
    assert (counter.size.layers, counter.size.width) == (2, 0)
    passes = 3 * (INNER_STEPS * TOKENS.support + TOKENS.query)
    assert counter.step(TOKENS) == pytest.approx(2 * counter.size.matmul_parameters * passes)


def test_a_run_that_diverged_has_no_accuracy_that_could_be_taken_for_a_result() -> None:
    progress = {"worker_seconds": 3600.0, "best_score": 0.7, "best_score_ci95": 0.1, "best_step": 3}
    priced = TrackingConfig(price_per_worker_hour=2.0)
    assert run_summary(progress, priced)["accuracy"] == 0.7
    summary = run_summary(progress | {"diverged": "query loss 80 at outer step 4"}, priced)
    assert not {"accuracy", "accuracy_ci95"} & summary.keys()
    assert (summary["best_score"], summary["cost"]) == (0.7, 2.0)


def test_versions_name_no_machine() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["python"].startswith("3.")
    assert {"distmeta", "ray", "deepspeed", "transformers", "platform"} <= set(found)
    assert platform.node() not in found["platform"].split()


@pytest.mark.parametrize(
    "algorithm", ["reptile", "anil", "metasgd", "protomaml", "protonet", "leopard", "metaicl", "multitask"]
)
@pytest.mark.parametrize("adapt", ["all", "bias", "last_k"])
def test_each_algorithm_s_operations_are_those_of_its_plain_computation(algorithm: str, adapt: str) -> None:
    network = tiny_network("gpt2" if algorithm == "metaicl" else "bert")
    # The plain computation of ANIL computes features again in each step.
    meta = meta_config(algorithm=algorithm, adapt=adapt, inner_steps=1 if algorithm == "anil" else 3)
    network.learn(algorithm_class(algorithm).learned(network, meta))
    network.computation = "packed" if algorithm == "metaicl" else "plain"  # since prompts differ in length
    task = task_batch(random_task(n_way=2, k_shot=1 if algorithm == "metaicl" else 3))
    if algorithm == "multitask":
        network.learn(algorithm_class(algorithm).learned_of_classes(network, meta, CLASSES))
        task = with_head(task, 1)
    counter = FlopCounter.of(network, meta)
    with FlopCounterMode(display=False) as true:
        algorithm_class(algorithm)(network, meta).task_gradient(dict(network.named_parameters()), task)
    width = task.support.input_ids.shape[1]
    support, query = len(task.support_labels), len(task.query_labels)
    padded = StepTokens(support * width, support, query * width, query, tasks=1)
    if algorithm == "metaicl":  # whose prompts are packed tightly
        padded = StepTokens(task.support.num_tokens, support, task.query.num_tokens, query, tasks=1)
    assert counter.step(padded) == pytest.approx(true.get_total_flops(), rel=0.12)
