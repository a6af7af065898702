"""The few-shot evaluation of a run: each is kept as what it is, and none takes the place of another."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from safetensors import safe_open

from distmeta.config import Config, load_config
from distmeta.corpus.parts import digest, file_digest
from distmeta.errors import UserError
from distmeta.evaluate.config import EvaluateConfig
from distmeta.evaluate.kept import UNFINISHED, KeptEvaluation
from distmeta.files import write_json
from distmeta.ownership import own
from distmeta.run_corpus import own_setup
from distmeta.rundir import RunDirectory
from distmeta.signals import stop_on_signal
from distmeta.tasks.config import as_words

Say = Callable[[str], None]


def evaluate(config: Config, run: RunDirectory, say: Say) -> str:
    """Scores the run's networks on held-out classes, and returns the table as text.

    Written to `evaluations/`, and to `evaluation.json` where it is the evaluation that the run's own configuration asks
    for. What was scored before a signal is kept there, and the same evaluation goes on behind it.

    Raises:
        UserError: the run has no such networks, or the corpus is none for them.
        Interrupted: a signal ended it.
    """
    with own(run.path), stop_on_signal(lambda: None, "keeping what is scored", say) as stopped:
        from distmeta.evaluate.context import with_context
        from distmeta.evaluate.run import Candidate, evaluate_candidates
        from distmeta.evaluate.table import evaluation_table
        from distmeta.run_baselines import MULTITASK, trained_baseline, wanted

        own_parts = own_setup(config, run)
        setup = own_parts.setup
        corpus = {
            "directory": str(setup.corpus),
            "content_digest": setup.manifest.content_digest,
            "is_of_the_run": own_parts.is_of_the_run,
        }
        tuned = config.evaluate.fine_tuning_episodes
        if tuned and config.engine.weights == "partitioned":
            say("not fine-tuned on support sets: a network whose weights are partitioned is too large for that")
            tuned = 0
        candidates = [
            Candidate("meta-pretrained", setup, run.best_weights),
            Candidate("starting", setup, run.starting_weights, fine_tuning_episodes=tuned),
        ]
        for name in wanted(config):
            baseline, directory = trained_baseline(config, run, setup, name)
            # The head of multi-task training says nothing of new classes, and there is no inner loop.
            candidates.append(Candidate(name, baseline, directory.best_weights, adapts=name != MULTITASK))
        for candidate in candidates:
            if not candidate.weights.exists():
                raise UserError(f"{candidate.weights} is not there: the run has not kept a network yet")
        changes = _changes(config, run)
        if not corpus["is_of_the_run"]:
            changes["corpus"] = corpus["content_digest"]
        networks = {candidate.name: file_digest(candidate.weights) for candidate in candidates}
        outer_step = _outer_step(run)
        others = {key: value for key, value in changes.items() if key not in NAMED}
        kept = KeptEvaluation(
            run.evaluations,
            evaluation_name(config.evaluate, [f"outer-step-{outer_step}", *([digest(others)[:8]] if others else [])]),
            digest([_settings(config), corpus["content_digest"], networks]),
        )
        report = evaluate_candidates(
            candidates,
            say,
            trained=own_parts.trained,
            is_trained_known=own_parts.trained is not None,
            kept=kept,
            work=run.evaluations / UNFINISHED,
            is_stopped=stopped.is_set,
        )
        report = with_context(report, config, _progress(run))
        report |= {"outer_step": outer_step, "seed": config.evaluate.seed, "corpus": corpus, "changes": changes}
        written = kept.finish(report)
        if not changes:
            write_json(run.evaluation, written)
        say(f"wrote {kept.file}")
        return evaluation_table(report)


NAMED = {f"evaluate.{key}" for key in ("split", "n_way", "k_shot", "query_per_class", "episodes", "seed")}
"""Settings that stand in the name of an evaluation."""


def evaluation_name(options: EvaluateConfig, more: list[str]) -> str:
    """The name of an evaluation: `test_5-way_5-shot_5-queries_200-episodes_seed-1`, and what else tells it apart."""
    parts = [
        options.split,
        f"{as_words(options.n_way)}-way".replace(" ", "-"),
        f"{as_words(options.k_shot)}-shot".replace(" ", "-"),
        f"{options.query_per_class}-queries",
        f"{options.episodes}-episodes",
        f"seed-{options.seed}",
    ]
    return "_".join([*parts, *more])


def _settings(config: Config) -> dict[str, Any]:
    """What the outcome depends on, beside networks and corpus, by dotted key."""
    sections: Mapping[str, Mapping[str, Any]] = {
        "evaluate": config.evaluate.model_dump(),
        "meta": config.meta.model_dump(),
        "engine": {"precision": config.engine.precision},
    }
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def _changes(config: Config, run: RunDirectory) -> dict[str, Any]:
    """The settings that are not as the run's own configuration has them."""
    before = _settings(load_config(run.config, check=False))
    return {key: value for key, value in _settings(config).items() if value != before[key]}


def _progress(run: RunDirectory) -> dict[str, Any]:
    """What its training came to; nothing where that is not written yet."""
    return json.loads(run.summary.read_text(encoding="utf-8")) if run.summary.exists() else {}


def _outer_step(run: RunDirectory) -> int:
    with safe_open(run.best_weights, framework="pt") as file:
        return int(file.metadata()["outer_step"])
