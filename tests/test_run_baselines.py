"""What a run trains to be held against, without Ray: what it is, and that it stands in the run's table."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from distmeta.config import load_config
from distmeta.errors import UserError
from distmeta.files import write_text
from distmeta.opening import reopen_run
from distmeta.pipeline import evaluate
from distmeta.run_baselines import baselines, check_baselines
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, resolve
from distmeta.train.work import WorkSource
from tests.mixtures import mixture, prepared_mixture
from tests.runs import begun_run, quiet
from tests.training import read_rows, run_training

PROGRESS = {"tokens": 3000}
PROTONET = {"algorithm": "protonet", "distance": "cosine", "outer_lr": 0.002, "meta_batch_size": 2, "lm_weight": 0.5}


@pytest.mark.parametrize(
    "asked", [pytest.param("language_model_baseline", marks=pytest.mark.slow), "multitask_baseline"]
)
def test_a_baseline_has_what_the_run_had_but_for_the_tasks(asked: str, tmp_path: Path) -> None:
    """Trained and evaluated in this process."""
    sections = {"evaluate": {"episodes": 2, asked: True}, "train": {"outer_steps": 3, "validate_every": 3}}
    config, run = begun_run(tmp_path, meta=PROTONET, **sections)
    ((baseline, directory),) = baselines(config, run, PROGRESS, quiet)
    assert resolve(load_config(directory.config, check=False)) == baseline  # runs as it is
    assert not baseline.evaluate.language_model_baseline
    assert not baseline.evaluate.multitask_baseline
    for section in ("tasks", "tokenizer", "model", "engine"):
        assert getattr(baseline, section) == getattr(config, section)
    for key in ("outer_lr", "meta_batch_size", "lm_weight", "weight_decay", "lm_batch_size"):
        assert getattr(baseline.meta, key) == getattr(config.meta, key), key
    progress = run_training(baseline.model_dump(), directory.path)
    rows = read_rows(directory.path)
    if asked == "multitask_baseline":
        assert baseline.meta.algorithm == "multitask"
        assert [row["outer_step"] for row in rows] == [1, 2, 3]
        assert all("training/query_loss" in row and "training/lm_loss" in row for row in rows)
        assert "best_score" in progress  # chosen on the meta-valid classes, as the run's network is
    else:
        assert progress["tokens"] == pytest.approx(PROGRESS["tokens"], rel=0.1)
        assert not any("training/query_loss" in row for row in rows)
    evaluate(config, run, quiet)
    names = [method["name"] for method in json.loads(run.evaluation.read_text())["methods"]]
    assert f"{directory.path.name} prototype" in names
    assert f"{directory.path.name} logistic-regression" in names
    # A head over the training classes says nothing of new ones.
    assert ("language-model inner-loop" in names) == (asked == "language_model_baseline")
    assert "multitask inner-loop" not in names


def test_a_baseline_that_was_not_trained_is_told(tmp_path: Path) -> None:
    _, run = begun_run(tmp_path)
    again = reopen_run(None, ["evaluate.multitask_baseline=true"], run.path)
    with pytest.raises(UserError, match=r"evaluate.multitask_baseline: .* has no such baseline; set it when the run"):
        evaluate(*again, quiet)


def test_partitioned_weights_have_no_multi_task_baseline() -> None:
    labelled = ["tasks.label_column=intent", "evaluate.multitask_baseline=true"]
    config = load_config(None, [*labelled, "engine.weights=partitioned", "engine.zero_stage=3"])
    with pytest.raises(UserError, match=r"evaluate.multitask_baseline: needs engine.weights whole"):
        check_baselines(config)


def test_in_a_mixture_each_labelled_set_has_a_head_of_its_own_and_words_have_none(tmp_path: Path) -> None:
    prepared_mixture(tmp_path)
    config = mixture(tmp_path, train={"outer_steps": 4}, evaluate={"multitask_baseline": True})
    run = RunDirectory(tmp_path / "run")
    write_text(run.environment, "{}")
    said: list[str] = []
    ((baseline, directory),) = baselines(config, run, PROGRESS, said.append)
    assert "SMLMT tasks are left out of it: its heads are over the classes of labelled sets" in said
    setup = Setup(baseline, directory)
    assert setup.training_classes is not None
    in_training = 2 + 2 + setup.manifest.dataset("topics").classes["train"].count
    assert len(setup.training_classes) == in_training  # none of those that are held out, and no word
    work = WorkSource(setup, torch.device("cpu"), 0, 1)
    spans: dict[str, set[tuple[int, int]]] = {}
    for step in range(4):
        for piece in work.take(step):
            source = setup.tasks("train").draw(piece.index).source
            assert piece.task is not None
            assert piece.task.head is not None
            (rows,), (span,) = piece.task.head.rows, piece.task.head.spans
            assert span[0] <= int(rows.min())
            assert int(rows.max()) < span[1]
            spans.setdefault(source, set()).add(span)
    work.close()
    assert spans.keys() <= {"moods", "pairs", "topics"}
    assert len(spans) > 1
    ends = sorted(span for each in spans.values() for span in each)
    assert len(ends) == len(spans)
    assert all(first[1] <= second[0] for first, second in pairwise(ends))
    run_training(baseline.model_dump(), directory.path)
    assert all("training/query_loss" in row for row in read_rows(directory.path))
