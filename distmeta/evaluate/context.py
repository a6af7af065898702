"""What an evaluation rests on: what its networks used, how much of the training was no task, what was not run."""

from collections.abc import Mapping
from typing import Any

from distmeta.config import Config
from distmeta.corpus.datasets import datasets_of


def what_was_used(config: Config, overlap: Mapping[str, Any]) -> dict[str, Any]:
    """What the results of a run's networks come from, beside the support set.

    `encoder`: what training started from; `class_names`, `queries_together`: whether those were used; numbers of texts
    of the evaluation that language modelling read, `unlabelled_test_texts`, and that stood in training tasks,
    `texts_seen_in_training`, with case, spaces and punctuation set aside, of `evaluation_texts`; absent where they are
    not known.
    """
    new = config.model.config.get("model_type")
    counts = {
        "unlabelled_test_texts": "in_language_modelling_near",
        "texts_seen_in_training": "in_training_tasks_near",
        "evaluation_texts": "evaluation_texts",
    }
    return {
        "encoder": config.model.name_or_path or f"a new {new}, trained from nothing",
        "class_names": bool(config.evaluate.class_names),
        "queries_together": config.evaluate.queries_together,
        **{name: overlap[key] for name, key in counts.items() if key in overlap},
    }


def with_context(report: dict[str, Any], config: Config, progress: Mapping[str, Any]) -> dict[str, Any]:
    """The report with what its verdict has to say beside the numbers.

    Args:
        report: that of `evaluation_report`, with the `overlap`.
        config: the run's.
        progress: its `tokens`, and how many of them were plain language modelling, `lm_tokens`.
    """
    report = report | {"used": what_was_used(config, report.get("overlap", {}))}
    tokens, read = progress.get("tokens", 0), progress.get("lm_tokens", 0)
    share = read / tokens if tokens else 0.0
    if share:
        report["language_model_share"] = share
    found = report.get("verdict")
    if not found:
        return report
    networks = {method["network"] for method in report["methods"]}
    notes = []
    if share and "language-model" in networks:
        notes.append(f"{share:.0%} of the run's tokens were plain language modelling.")
    elif share:
        absent = f"plain language modelling, {share:.0%} of the run's tokens, was not trained alone"
        found = found | {"text": found["text"].replace("Yes: ", f"Yes, against what was run, but {absent}: ", 1)}
        notes.append(f"{absent[0].upper()}{absent[1:]} (evaluate.language_model_baseline).")
    labelled = any(dataset.labelled and dataset.role != "test" for dataset in datasets_of(config.corpus, config.tasks))
    if "multitask" in networks and config.tasks.smlmt_share:
        notes.append(
            "Multi-task training had the texts of labelled sets alone: it has no head over the words of SMLMT."
        )
    if labelled and "multitask" not in networks and config.meta.algorithm != "multitask":
        notes.append("Multi-task training on the same labelled texts was not run (evaluate.multitask_baseline).")
    if not any(method["use"] == "fine-tuning" for method in report["methods"]):
        notes.append(
            "Fine-tuning the starting network on each support set was not run (evaluate.fine_tuning_episodes)."
        )
    return report | {"verdict": found | {"notes": [*found["notes"], *notes]}}
