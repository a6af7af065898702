"""The networks that a classifier is made from compute what the run's own do, and what other software makes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distmeta.adapt.base import AVERAGE, NETWORK, STARTING, TRAINED, load_base, load_bases
from distmeta.adapt.methods import InnerLoop, Support
from distmeta.compute.batch import collate_tokens
from distmeta.config import load_config
from distmeta.errors import UserError
from distmeta.evaluate.networks import RunPlace
from distmeta.evaluation_networks import models_of
from distmeta.models.description import FILE, Description, show
from distmeta.pipeline import write_models
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from tests.runs import begun_run, quiet

CPU = torch.device("cpu")
TEXTS = [("bin dor topicao n1",), ("kast lin topicbu",), ("fen fon dix topicao mir",), ("topicbo n2 gor",)] * 2
LABELS = np.array([0, 1, 0, 1] * 2)


def exported(folder: Path, **sections: Any) -> RunDirectory:
    config, run = begun_run(folder, **sections)
    write_models(Setup(config, run), run)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return exported(tmp_path_factory.mktemp("project"))


@pytest.mark.parametrize(
    "meta",
    [
        {"algorithm": "protonet", "distance": "cosine", "learn_temperature": True},
        {"algorithm": "fomaml"},
        {"algorithm": "fomaml", "adapt": "lora"},
        {"algorithm": "metasgd"},
        {"algorithm": "protomaml"},
        {"algorithm": "leopard"},
        {"algorithm": "multitask"},
    ],
    ids=lambda meta: "-".join(map(str, meta.values())),
)
def test_a_folder_has_all_that_its_algorithm_needs_to_adapt(meta, tmp_path):
    """The scores of an inner loop are those of the run's own weights, adapters and what was learned included."""
    config, run = begun_run(tmp_path, meta=meta)
    write_models(Setup(config, run), run)
    own = RunPlace(
        config.model_copy(
            update={"corpus": config.corpus.model_copy(update={"directory": str(run.corpus)})}
        ).model_dump_json(),
        str(run.best_weights),
    ).load()
    base = load_base(TRAINED, str(run.model), CPU)
    tokens = base.encode(TEXTS)
    support = Support(tokens, LABELS, 2)
    batch = collate_tokens([ids for ids, _ in tokens], own.pad_token_id, CPU)
    own.network.eval()
    classify = own.algorithm.fit(own.parameters, batch, torch.from_numpy(LABELS), 2, own.inner_steps)
    assert InnerLoop.of(base, support).scores(tokens) == pytest.approx(
        classify(batch).detach().numpy(), abs=2e-5, rel=3e-4
    )
    assert not list(run.model.glob("*.bin"))
    assert not list(run.model.glob("*.pt"))


def test_of_a_run_there_are_three_networks(run):
    bases = {base.name: base for base in load_bases(str(run.path), CPU)}
    assert set(bases) == {TRAINED, STARTING, AVERAGE}
    kept, start, mean = (bases[name].scorer.parameters for name in (TRAINED, STARTING, AVERAGE))
    assert all(torch.allclose(mean[name], (kept[name] + start[name]) / 2, atol=1e-7) for name in start)
    assert any((kept[name] - start[name]).abs().max() > 1e-3 for name in start)
    assert [base.name for base in load_bases(str(run.model), CPU)] == [TRAINED, STARTING, AVERAGE]


def test_a_folder_that_was_written_again_is_read_again(tmp_path):
    run = exported(tmp_path)
    before = load_bases(str(run.path), CPU)[0].features(load_bases(str(run.path), CPU)[0].encode(TEXTS))
    run.best_weights.write_bytes(run.starting_weights.read_bytes())
    config, _ = begun_run(tmp_path, "other")
    write_models(Setup(config, run), run)
    again = load_bases(str(run.path), CPU)[0]
    assert np.abs(again.features(again.encode(TEXTS)) - before).max() > 1e-4


def test_a_folder_of_no_run_has_one_network_and_no_inner_loop(run, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in run.starting.iterdir():
        if file.is_file() and file.name != FILE:
            (folder / file.name).write_bytes(file.read_bytes())
    (base,) = load_bases(str(folder), CPU)
    assert (base.name, base.scorer.algorithm, base.description.pooling) == (NETWORK, None, "mean")


def test_the_pooling_of_a_folder_of_sentence_transformers_is_its_own(run, tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    assert Description.read(tmp_path) == Description("first", 20)
    assert Description.read(run.model).pooling == "mean"


def test_an_evaluation_of_a_folder_reads_texts_as_the_folder_says(tmp_path):
    run = exported(tmp_path, model={"pooling": "first"})
    config = load_config(None, ["tasks.label_column=label"])
    (network,) = models_of([str(run.model)], config, quiet)
    assert network.config.model.pooling == "first"
    config.model.pooling = "last"
    (network,) = models_of([str(run.model)], config, quiet)
    assert network.config.model.pooling == "last", "who asks for another has another"


def test_what_a_later_version_wrote_is_refused(tmp_path):
    (tmp_path / FILE).write_text(json.dumps({"format": 99, "distmeta": "9.0", "pooling": "mean", "max_length": 3}))
    with pytest.raises(UserError, match=r"written by distmeta 9\.0"):
        Description.read(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Description.read(tmp_path)


def test_what_an_evaluation_showed_is_noted(tmp_path):
    Description("mean", 20).write(tmp_path)
    show(tmp_path, {TRAINED: {"prototype": 0.5}})
    assert Description.read(tmp_path).shown == {TRAINED: {"prototype": 0.5}}


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_sentence_transformers_makes_the_same_features(pooling, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    run = exported(tmp_path, model={"pooling": pooling})
    base = load_base(TRAINED, str(run.model), CPU)
    texts = [text for (text,) in TEXTS] + ["bin " * 60]
    ours = base.features(base.encode([(text,) for text in texts]))
    theirs = sentence_transformers.SentenceTransformer(str(run.model), device="cpu").encode(texts)
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.abs(ours - theirs).max() / np.abs(ours).max() < 2e-6
