"""What stands beside a verdict: what was used, how much of the training was no task, and what was not run."""

from typing import Any

import pytest

from distmeta.config import load_config
from distmeta.evaluate.context import with_context
from distmeta.evaluate.sentences import describe_used
from distmeta.evaluate.table import evaluation_report, evaluation_table
from tests.test_evaluate_verdict import OWN, method

LABELLED = ["tasks.label_column=intent", "model.name_or_path=some/encoder"]
OVERLAP = {"evaluation_texts": 40, "in_training_tasks_near": 3, "in_language_modelling_near": 0}


def report_of(others: list[Any], *, settings: list[str], tokens: int = 0, lm_tokens: int = 0) -> dict[str, Any]:
    report = evaluation_report([*OWN, *others], split="test", n_way=5, k_shot=1, query_per_class=3)
    config = load_config(None, settings)
    return with_context(report | {"overlap": OVERLAP}, config, {"tokens": tokens, "lm_tokens": lm_tokens})


def test_yes_is_not_said_without_plain_language_modelling_where_the_run_did_any() -> None:
    starting = method("starting", "prototype", 0.5)
    report = report_of([starting], settings=[], tokens=1000, lm_tokens=940)
    assert report["language_model_share"] == 0.94
    assert report["verdict"]["text"].startswith(
        "Yes, against what was run, but plain language modelling, 94% of the run's tokens, was not trained alone: 70.0"
    )
    assert "(evaluate.language_model_baseline)." in report["verdict"]["notes"][0]
    with_it = report_of([starting, method("language-model", "prototype", 0.6)], settings=[], tokens=1000, lm_tokens=940)
    assert with_it["verdict"]["text"].startswith("Yes: 70.0 ± 3.0 by prototype, better than the strongest rival, plain")
    assert with_it["verdict"]["notes"][0] == "94% of the run's tokens were plain language modelling."
    none = report_of([starting], settings=LABELLED, tokens=1000)
    assert none["verdict"]["text"].startswith("Yes: ")
    assert "language_model_share" not in none


@pytest.mark.parametrize(
    ("settings", "others", "said"),
    [
        (LABELLED, [], ["evaluate.multitask_baseline", "evaluate.fine_tuning_episodes"]),
        (LABELLED, [method("multitask", "prototype", 0.5)], ["evaluate.fine_tuning_episodes"]),
        ([*LABELLED, "meta.algorithm=multitask"], [], ["evaluate.fine_tuning_episodes"]),
        ([], [method("starting", "fine-tuning", 0.5, episodes=4)], []),
    ],
)
def test_what_was_not_run_is_said(settings: list[str], others: list[Any], said: list[str]) -> None:
    report = report_of([method("starting", "prototype", 0.5), *others], settings=settings)
    notes = " ".join(report["verdict"]["notes"])
    for key in ("multitask_baseline", "fine_tuning_episodes"):
        assert (f"evaluate.{key}" in notes) == (f"evaluate.{key}" in said)
    table = " ".join(evaluation_table(report).split())
    assert all(note in table for note in report["verdict"]["notes"])


def test_what_multi_task_training_left_out_is_said() -> None:
    settings = [*LABELLED, "tasks.smlmt_share=0.5", "corpus.sources=[a.csv, {path: b.csv, label_column: x, name: b}]"]
    config = load_config(None, settings, check=False)
    results = [*OWN, method("multitask", "prototype", 0.5)]
    report = evaluation_report(results, split="test", n_way=5, k_shot=1, query_per_class=3)
    notes = with_context(report | {"overlap": OVERLAP}, config, {})["verdict"]["notes"]
    assert "Multi-task training had the texts of labelled sets alone: it has no head over the words of SMLMT." in notes


def test_what_the_results_used_stands_beside_them() -> None:
    report = report_of([], settings=LABELLED)
    assert report["used"] == {
        "encoder": "some/encoder",
        "class_names": False,
        "queries_together": False,
        "unlabelled_test_texts": 0,
        "texts_seen_in_training": 3,
        "evaluation_texts": 40,
    }
    said = (
        "Used: some/encoder; no class names; each query by itself; no test texts as unlabelled text; 3 of 40 test "
        "texts in training tasks."
    )
    assert describe_used(report) == [said]
    assert said in " ".join(evaluation_table(report).split())
    assert describe_used({"methods": []}) == []  # of an earlier version
    unknown = with_context({"methods": [], "overlap": {}}, load_config(None, []), {})
    assert "a new bert, trained from nothing; " in describe_used(unknown)[0]
    assert "an unknown number of test texts in training tasks" in describe_used(unknown)[0]
