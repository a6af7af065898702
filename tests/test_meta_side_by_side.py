"""Several tasks side by side in one packed row, each with fast weights of its own, against one after the other."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from distmeta.compute import parts, twice
from distmeta.compute.batch import join
from distmeta.meta import Learner, Work, algorithm_class
from distmeta.meta import learner as learner_module
from distmeta.meta.algorithm import Parameters
from distmeta.meta.language_model import LanguageModelBatch
from distmeta.meta.maml import FirstOrderMAML
from distmeta.models import Network
from distmeta.models.load import can_separate_tasks
from tests.helpers import meta_config, random_task, task_batch, tiny_network
from tests.meta_cases import ADAPTED, Case, case, make_network, make_task, relative_error, whole, with_head
from tests.test_meta_algorithms import CASES, TOLERANCE

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize(
    ("case", "model_type"),
    [
        *((each, "bert") for each in CASES if each.options or each.adapt in ("all", "bias", "lora")),
        *((case(name, adapt), "gpt2") for name in ("maml", "fomaml") for adapt in ADAPTED),
    ],
    ids=str,
)
def test_tasks_side_by_side_give_the_sum_of_what_each_gives(case: Case, model_type: str) -> None:
    """Tasks of different lengths and sizes, each of which has fast weights of its own."""
    algorithm = algorithm_class(case.algorithm)
    attention = "eager" if algorithm.differentiates_twice(case.config) else "sdpa"
    network = make_network(case, model_type, attention=attention)
    network.computation = "packed"
    learner = algorithm(network, case.config)
    if not learner.takes_tasks:
        assert case.algorithm in ("reptile", "metaicl") or case.config.inner_clipping
        pytest.skip("one task at a time")
    parameters = dict(network.named_parameters())
    tasks = [make_task(case, index) for index in (4, 5)]
    small = task_batch(random_task(6, n_way=3, k_shot=1, query_per_class=1))
    tasks.append(with_head(small, 6) if algorithm.needs_training_classes else small)
    results = [learner.task_gradient(parameters, task, case.progress) for task in tasks]
    together = learner.task_gradient(parameters, join(tasks), case.progress)
    expected: Parameters = defaultdict(lambda: torch.zeros(()))
    for result in results:
        for name, gradient in whole(result, parameters).items():
            expected[name] = expected[name] + gradient
    found = whole(together, parameters)
    assert found.keys() == expected.keys()
    error, name = relative_error(found, expected)
    assert error < TOLERANCE, name
    assert together.query_loss == pytest.approx(sum(each.query_loss for each in results), rel=TOLERANCE)
    assert together.query_accuracy == pytest.approx(sum(each.query_accuracy or 0.0 for each in results))
    assert together.query_accuracy_before == (
        None
        if results[0].query_accuracy_before is None
        else pytest.approx(sum(each.query_accuracy_before or 0.0 for each in results))
    )
    losses = zip(*(each.support_losses for each in results), strict=True)
    assert together.support_losses == pytest.approx([sum(each) for each in losses], rel=TOLERANCE)


@pytest.mark.parametrize(
    ("case", "model_type"),
    [
        *((case(name, adapt), "bert") for name, adapt in product(("fomaml", "maml"), ("all", "lora", "bias"))),
        *((case(name), "gpt2") for name in ("fomaml", "maml")),
        *((case(name), "bert") for name in ("anil", "metasgd", "protomaml", "protonet", "leopard", "multitask")),
    ],
    ids=str,
)
def test_batched_products_as_on_a_gpu_give_the_same(
    case: Case, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One product for all tasks, whose parts of the row are filled up to one size; tried here on the CPU."""
    algorithm = algorithm_class(case.algorithm)
    attention = "eager" if algorithm.differentiates_twice(case.config) else "sdpa"
    network = make_network(case, model_type, attention=attention)
    network.computation = "packed"
    learner = algorithm(network, case.config)
    parameters = dict(network.named_parameters())
    found = []
    for device_types in (set(), {"cpu"}):
        monkeypatch.setattr(parts, "BATCHED_ON", device_types)
        tasks = join([make_task(case, index) for index in (4, 5, 6)])
        found.append(whole(learner.task_gradient(parameters, tasks), parameters))
    assert relative_error(found[1], found[0])[0] < TOLERANCE


@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
def test_weights_that_several_layers_share_get_all_of_their_gradient(algorithm: str) -> None:
    """ALBERT's layers are one layer: its weights may move only when the last of their uses has been gone through."""
    options = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model("albert", vocab_size=600, embedding_size=16, **options, **NO_DROPOUT)
    torch.manual_seed(0)
    attention = "eager" if algorithm == "maml" else "sdpa"
    model = AutoModel.from_config(config, attn_implementation=attention, add_pooling_layer=False)
    network = Network(model, "mean", computation="packed").double().eval()
    assert can_separate_tasks(network)
    learner = algorithm_class(algorithm)(network, meta_config(algorithm=algorithm, inner_lr=0.3, inner_steps=3))
    parameters = dict(network.named_parameters())
    tasks = [task_batch(random_task(index)) for index in range(2)]
    single = [whole(learner.task_gradient(parameters, task), parameters) for task in tasks]
    found = whole(learner.task_gradient(parameters, join(tasks)), parameters)
    assert relative_error(found, {name: single[0][name] + single[1][name] for name in found})[0] < TOLERANCE


def mixed_work(count: int) -> list[Work]:
    """Tasks with text beside them."""
    work = []
    for index in range(count):
        text = task_batch(random_task(20 + index, query_per_class=1)).query
        rows = torch.arange(len(text.input_ids))
        batch = LanguageModelBatch(text, (rows, torch.ones_like(rows)), text.input_ids[:, 1])
        work.append(Work(index, task_batch(random_task(index, k_shot=1 + index % 2)), batch))
    return work


@pytest.fixture
def threads_of_torch() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_of_torch")
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("adapt", ["all", "lora"])
def test_tasks_at_a_time_change_nothing(model_type: str, adapt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes side by side or at the same time, gradients and metrics are those of one task after the other."""
    network = tiny_network(model_type, lora_rank=2 if adapt == "lora" else 0, attention="sdpa").double()
    network.computation = "packed"
    config = meta_config(adapt=adapt, inner_lr=0.1, lm_weight=0.5)
    parameters = dict(network.named_parameters())
    work = mixed_work(5)
    compute = FirstOrderMAML.task_gradient
    seen: list[tuple[int, int, int]] = []

    def spy(self: Any, parameters: Any, task: Any, progress: float) -> Any:
        seen.append((threading.get_ident(), id(self.network), len(task.query_sizes) or 1))
        return compute(self, parameters, task, progress)

    monkeypatch.setattr(FirstOrderMAML, "task_gradient", spy)
    answers, sizes = [], []
    for threads, at_a_time in ((1, 1), (1, 2), (1, None), (2, 1), (2, 2), (2, None)):
        torch.set_num_threads(threads)
        seen.clear()
        started = time.perf_counter()
        answers.append(Learner(network.eval(), config, "fp32", 0, at_a_time).gradient(parameters, work, 5))
        assert 0 < answers[-1][1]["seconds/inner"] < time.perf_counter() - started
        sizes.append([tasks for *_, tasks in sorted(seen, key=lambda each: -each[2])])
        is_alone = threads == 1 or at_a_time == 1
        assert len({network for _, network, _ in seen}) == (1 if is_alone else 2)
        assert (threading.get_ident() in {thread for thread, *_ in seen}) == is_alone
        with ThreadPoolExecutor(1) as later:  # new threads begin with as many as before
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == threads
    assert sizes == [[1] * 5, [2, 2, 1], [5], [1] * 5, [1] * 5, [3, 2]]
    (gradients, metrics), *others = answers
    for found, other_metrics in others:
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)  # summed up in fp32
        metrics.pop("seconds/inner", None), other_metrics.pop("seconds/inner")
        assert other_metrics == pytest.approx(metrics, rel=1e-6)


@pytest.mark.parametrize("adapt", ["all", "lora", "head"])
def test_bf16_side_by_side_is_as_near_to_fp32_as_one_by_one(adapt: str) -> None:
    network = tiny_network("bert", lora_rank=2 if adapt == "lora" else 0, attention="sdpa").eval()
    network.computation = "packed"
    config = meta_config(adapt=adapt, inner_lr=0.1, lm_weight=0.0)
    parameters = dict(network.named_parameters())
    work = [Work(index, task_batch(random_task(index)), None) for index in range(3)]
    exact, single, together = (
        torch.cat([gradient.flatten() for _, gradient in sorted(gradients.items())])
        for gradients, _ in (
            Learner(network, config, precision, 0, at_a_time).gradient(parameters, work, 3)
            for precision, at_a_time in (("fp32", 1), ("bf16", 1), ("bf16", 3))
        )
    )
    assert (together - exact).norm() < 1.5 * (single - exact).norm() < 0.001 * exact.norm()


@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
def test_bf16_where_a_model_turns_queries_in_fp32(algorithm: str) -> None:
    """As Llama's rotary embedding does, while the values stay in bf16."""
    options = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model("llama", vocab_size=600, num_key_value_heads=2, **options)
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="eager" if algorithm == "maml" else "sdpa")
    network = Network(model, "last", computation="packed").eval()
    parameters = dict(network.named_parameters())
    work = [Work(index, task_batch(random_task(index)), None) for index in range(2)]
    exact, found = (
        torch.cat([gradient.flatten() for _, gradient in sorted(gradients.items())])
        for gradients, _ in (
            Learner(network, meta_config(algorithm=algorithm, inner_lr=0.1, lm_weight=0.0), precision, 0).gradient(
                parameters, work, 2
            )
            for precision in ("fp32", "bf16")
        )
    )
    assert (found - exact).norm() < 0.02 * exact.norm()


def test_what_does_not_go_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, other numbers of classes, padded texts, and more tokens or bytes than suit the device."""

    def groups(network: Network, work: list[Work], **settings: Any) -> list[int]:
        learner = Learner(network, meta_config(lm_weight=0.0, **settings), "fp32", 0)
        return [len(group) for group in learner._groups(work, dict(network.named_parameters()), 1)]

    plain = tiny_network("bert", attention="sdpa").eval()
    packed = tiny_network("bert", attention="sdpa").eval()
    packed.computation = "packed"
    dropping = tiny_network("bert", dropout=0.1, attention="sdpa").train()
    dropping.computation = "packed"
    work = [Work(index, task_batch(random_task(index)), None) for index in range(3)]
    assert groups(packed, work) == [3]
    assert groups(plain, work) == [1, 1, 1]
    assert groups(dropping, work) == [1, 1, 1]
    assert groups(packed, work, algorithm="reptile") == [1, 1, 1]
    assert groups(packed, work, inner_clipping=1.0) == [1, 1, 1]
    assert groups(packed, work, algorithm="maml") == [3]
    assert groups(packed, work, algorithm="maml", inner_optimizer="momentum") == [1, 1, 1]
    mixed = [*work[:2], Work(3, task_batch(random_task(3, n_way=2)), None), *work[2:]]
    assert groups(packed, mixed) == [1, 3]  # those of as many classes, wherever they stand
    tokens = sum(item.task.query.num_tokens for item in work[:2])
    monkeypatch.setitem(learner_module.MOST_NUMBERS, "cpu", tokens * packed.hidden_size)
    assert groups(packed, work) == [2, 1]
    for in_one_pass in ("anil", "protonet"):
        assert groups(packed, work, algorithm=in_one_pass) == [1, 1, 1]
    with monkeypatch.context() as as_on_a_gpu:  # where the smaller of two tasks is filled up
        as_on_a_gpu.setattr(parts, "BATCHED_ON", {"cpu"})
        assert groups(packed, work)[0] == 1
    monkeypatch.setitem(learner_module.MOST_BYTES, "cpu", 1000)
    assert groups(packed, work) == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "settings", "copies"),
    [
        ("fomaml", {}, 1),
        ("fomaml", {"inner_rates": "layer_step"}, 7),  # and what the rates of each step multiply
        ("metasgd", {"second_order": False}, 2),  # and the sum of that
        ("maml", {}, 6),
        ("maml", {"recompute": True}, 4),
        ("anil", {"adapt": "head"}, 0),
    ],
)
def test_what_tasks_side_by_side_take_is_counted(name: str, settings: dict[str, Any], copies: int) -> None:
    """Without the word embedding, of which a task has few rows."""
    network = tiny_network("bert")
    config = meta_config(algorithm=name, inner_steps=6, lm_weight=0.0, **settings)
    network.learn(algorithm_class(name).learned(network, config))
    parameters = dict(network.named_parameters())
    adapted = set(network.adapted_names(config.adapt)) - {network.embedding}
    counted = Learner(network, config, "fp32", 0)._bytes_of_a_task(parameters)
    assert counted == copies * sum(parameters[each].nbytes for each in adapted or parameters)


@pytest.mark.parametrize(
    ("model_type", "options", "separates"),
    [
        ("llama", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}, True),
        # Embeds positions by a module that does not take them token by token.
        ("opt", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64}, False),
    ],
)
@pytest.mark.parametrize("pooling", ["mean", "mask", "first", "last"])
def test_whether_tasks_can_be_separated_is_tried_out(
    model_type: str, options: dict[str, int], separates: bool, pooling: Any
) -> None:
    if model_type == "opt":
        options = {**options, "word_embed_proj_dim": 32}
    config = AutoConfig.for_model(model_type, vocab_size=99, max_position_embeddings=64, **options)
    network = Network(AutoModel.from_config(config, attn_implementation="sdpa"), pooling, computation="packed")
    assert can_separate_tasks(network) == separates


@pytest.mark.parametrize(
    ("model_type", "groups"), [("bert", {3}), ("distilbert", {3}), ("llama", {1, 2, 3}), ("gpt2", {1})]
)
def test_layers_that_read_the_same_rows_go_together_in_second_order(
    model_type: str, groups: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Query, key and value projections, and the two into a gated layer, whatever an architecture calls them."""
    sizes = {
        "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    }
    torch.manual_seed(0)
    hf_config = AutoConfig.for_model(model_type, vocab_size=600, **sizes[model_type])
    more = {"add_pooling_layer": False} if model_type == "bert" else {}
    model = AutoModel.from_config(hf_config, attn_implementation="eager", **more)
    network = Network(model, "mean", computation="packed").eval()
    seen, linears = [], twice.linears
    monkeypatch.setattr(
        twice,
        "linears",
        lambda rows, weights, *rest, **more: seen.append(len(weights)) or linears(rows, weights, *rest, **more),
    )
    work = [Work(index, task_batch(random_task(index)), None) for index in range(2)]
    parameters = dict(network.named_parameters())
    learner = Learner(network, meta_config(algorithm="maml", inner_lr=0.1, lm_weight=0.0), "fp32", 0)
    found, _ = learner.gradient(parameters, work, 2)
    assert groups <= set(seen)
    network.computation = "plain"
    expected, _ = learner.gradient(parameters, work, 2)
    assert relative_error(found, expected)[0] < 1e-4
