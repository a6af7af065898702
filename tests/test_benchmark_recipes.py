"""The search for recipes: it trains and scores as a run does, keeps what is best, and says what each point is worth."""

import gzip
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distmeta.config import load_config
from distmeta.corpus.executor import LocalExecutor
from distmeta.evaluate.score import Scorer
from distmeta.meta import algorithm_class
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from tests.corpora import TINY_MODEL

FOLDER = Path(__file__).parent.parent / "jobs" / "benchmarks"
NEW = [
    "model.name_or_path=null",
    "tokenizer.vocab_size=400",
    "meta.lm_weight=0",
    "train.average_with_start=auto",
    "meta.inner_lr=0.3",
]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("recipes")
    monkeypatch.setattr(module, "EPISODES", 60)
    return module


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data set laid out as the intent sets are: 18 classes, whose texts have two words of their class."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("n", "r", "st", "x")]
    files = folder / "TINY" / "few_shot" / "01"
    files.mkdir(parents=True)
    for number, split in enumerate(("train", "valid", "test")):
        (files / f"labels.{split}.txt").write_text("\n".join(f"class {6 * number + each}" for each in range(6)))
    with gzip.open(folder / "TINY" / "full.jsonl.gz", "wt") as file:
        for number in range(18 * 14):
            text = [*random.choice(words, random.integers(3, 12)), f"topic{number % 18}", f"n{number}"]
            file.write(json.dumps({"sentence": " ".join(text), "label": f"class {number % 18}"}) + "\n")
    return folder


def settings(*more: str) -> list[str]:
    model = json.dumps(TINY_MODEL)
    return [*NEW, f"model.config={model}", *more]


def options(data: Path, *more: str) -> list[str]:
    sets = [part for each in settings() for part in ("--set", each)]
    return ["--data", str(data), "--sets", "TINY", "--adapting", "2", *sets, *more]


@pytest.fixture
def setup_of(benchmark, data, tmp_path):
    def make(algorithm: str, *more: str) -> Setup:
        base = load_config(None, settings(*more))
        config = benchmark.configured(base, data / "TINY", "01", {"meta.algorithm": algorithm})
        config.corpus.directory = str(tmp_path / "corpus")
        run = RunDirectory(tmp_path / "run")
        prepare_with(LocalExecutor(), config, run, lambda text: None)
        return Setup(config, run)

    return make


def test_frozen_features_serve_an_inner_loop_of_the_head(benchmark, setup_of):
    setup = setup_of("anil")
    network = setup.network()
    weights = {name: value.detach() for name, value in network.named_parameters()}
    episodes = benchmark.Episodes(setup, "test", adapting=1)
    found = episodes.score(weights)["own"]
    algorithm = algorithm_class("anil")(network, setup.config.meta)
    scorer = Scorer(network, weights, algorithm, 5, "fp32", setup.tokenizer.pad_token_id)
    tasks = [setup.tasks("test", seed=1, pool_texts=benchmark.POOL_TEXTS).draw(index) for index in range(5)]
    assert found[:5] == [scores["inner-loop"].accuracy for scores in scorer.score(tasks, ("inner-loop",))]
    assert len(found) == benchmark.EPISODES
    assert np.std(found) > 0


def test_a_search(benchmark, data, capsys):
    grid = ["meta.distance=cosine", "meta.outer_lr=1e-9,1e-2", "train.outer_steps=12"]
    arguments = ["--algorithm", "protonet", "--shares", "0.5", *(part for each in grid for part in ("--grid", each))]
    assert benchmark.main(options(data, *arguments)) == 0
    said = capsys.readouterr().out.splitlines()
    still, moved = (line for line in said if line.startswith("  TINY/01: "))
    assert "step 12 +0.0±0.0 +0.0±0.0 +0.0±0.0 | 50% start +0.0" in still
    assert "step 12 +0.0±0.0 +0.0" not in moved
    worth = float(said[-1].split(" gains ")[1])
    gains = [float(each.split("±")[0]) for each in moved.split("| step 12 ")[1].split(" | ")[0].split()]
    assert said[-1].startswith("best of protonet: ")
    assert worth >= max(0.0, sum(gains) / 3) - 0.06, "no point is worth more"


def test_a_point_is_worth_what_its_best_network_gains_in_all_uses(benchmark):
    def trial(trained, average):
        gains = {"trained": dict.fromkeys(benchmark.USES, (trained, 0.1)), "50% start": {}}
        gains["50% start"] = dict(zip(benchmark.USES, ((each, 0.1) for each in average), strict=True))
        return benchmark.Trial({}, gains, [1.0], 1.0)

    worth, network = benchmark.worth([trial(0.1, (0.0, 0.3, 0.3)), trial(0.1, (0.1, 0.1, 0.4))])
    assert (worth, network) == (pytest.approx(0.2), "50% start")


@pytest.mark.slow
def test_a_table(benchmark, data, capsys):
    arguments = ["--table", "--algorithm", "protonet", "multitask", "--set", "train.outer_steps=10"]
    assert benchmark.main(options(data, "--set", "meta.outer_lr=0.01", *arguments)) == 0
    head, rule, first, second = capsys.readouterr().out.splitlines()
    assert head == "|  | TINY, own use | TINY, prototype |"
    assert rule == "| --- | --- | --- |"
    for row, name in ((first, "protonet"), (second, "multitask")):
        assert row.startswith(f"| {name} | ")
        start, kept = (float(part) for part in row.split("|")[3].split("(")[0].split("/"))
        gain = float(row.split("|")[3].split("(")[1].split("±")[0])
        assert kept - start == pytest.approx(gain, abs=0.11)


def test_what_cannot_be_is_said_in_a_line(benchmark, data, capsys):
    assert benchmark.main(options(data, "--algorithm", "protonet", "--grid", "meta.outer_rl=1")) == 2
    assert "meta.outer_rl" in capsys.readouterr().err
