"""The few-shot evaluation of a run: each is kept as what it is, and none takes the place of another."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from distmeta.config import Config, load_config
from distmeta.corpus.executor import Executor, LocalExecutor, RayExecutor
from distmeta.corpus.parts import digest
from distmeta.errors import UserError
from distmeta.evaluate.config import EvaluateConfig
from distmeta.evaluate.kept import UNFINISHED, KeptEvaluation
from distmeta.files import write_json
from distmeta.ownership import own
from distmeta.run_corpus import own_setup
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.signals import stop_on_signal
from distmeta.tasks.config import as_words

if TYPE_CHECKING:
    from distmeta.evaluate.networks import Candidate, ScoredNetwork
    from distmeta.evaluate.run import Asked

Say = Callable[[str], None]

TASKS_SHOWN = 3
"""Of those that were evaluated on, to look at in W&B."""


def evaluate(config: Config, run: RunDirectory, say: Say) -> str:
    """Scores the run's networks on held-out classes, and returns the table as text: see `evaluate_all`."""
    return "\n\n".join(evaluate_all([config], run, say))


def evaluate_all(
    configs: Sequence[Config], run: RunDirectory, say: Say, models: "Sequence[ScoredNetwork]" = ()
) -> list[str]:
    """Scores the run's networks, and `models` beside them, on held-out classes, and returns a table as text for each
    configuration; these differ in `evaluate` alone.

    Written to `evaluations/`, and to `evaluation.json` where it is the evaluation that the run's own configuration asks
    for. What was scored before a signal is kept there, and the same evaluation goes on behind it.

    Raises:
        UserError: the run has no such networks, or the corpus is none for them.
        Interrupted: a signal ended it.
    """
    with own(run.path), stop_on_signal(lambda: None, "keeping what is scored", say) as stopped:
        from distmeta.evaluate.confusion import confusion
        from distmeta.evaluate.context import with_context
        from distmeta.evaluate.overlap import count_overlap, describe_overlap
        from distmeta.evaluate.run import Asked, evaluate_networks
        from distmeta.evaluate.table import evaluation_table
        from distmeta.tracking.wandb_results import record_evaluation

        config = configs[0]
        own_parts = own_setup(config, run)
        setup = own_parts.setup
        corpus = {
            "directory": str(setup.corpus),
            "content_digest": setup.manifest.content_digest,
            "is_of_the_run": own_parts.is_of_the_run,
        }
        networks: list[ScoredNetwork] = [*networks_of(config, run, setup, say), *models]
        if models and any(not each.labelled for each in setup.manifest.datasets):
            raise UserError(
                "--model: the classes of this run are words that are hidden in sentences (SMLMT), and other networks "
                "have another mask: evaluate them on a labelled set, by --on FILE"
            )
        identities = {each.name: each.identity for each in networks}
        outer_step = outer_step_of(run)
        asked, all_changes = [], []
        for each in configs:
            changes = _changes(each, run)
            if not corpus["is_of_the_run"]:
                changes["corpus"] = corpus["content_digest"]
            if models:
                changes["models"] = [model.name for model in models]
            all_changes.append(changes)
            others = {key: value for key, value in changes.items() if key not in NAMED}
            more = [f"outer-step-{outer_step}", *([digest(others)[:8]] if others else [])]
            identity = digest([_settings(each), corpus["content_digest"], identities])
            kept = KeptEvaluation(run.evaluations, evaluation_name(each.evaluate, more), identity)
            source = Setup(each, run).evaluation_tasks()
            asked.append(Asked(source, each.evaluate.episodes, kept))
        say_what(networks, asked, f"meta-{config.evaluate.split} classes", say)
        with evaluation_executor(config) as executor:
            reports = evaluate_networks(
                networks,
                asked,
                say,
                options=config.evaluate,
                executor=executor,
                work=run.evaluations / UNFINISHED,
                is_stopped=stopped.is_set,
            )
        trained = own_parts.trained
        overlap = count_overlap(setup, trained, config.evaluate.split) if trained else {}
        for line in describe_overlap(overlap, config.evaluate.split):
            say(line)
        tables, found, is_own = [], {}, False
        for each, one, report, changes in zip(configs, asked, reports, all_changes, strict=True):
            report = with_context(report | {"overlap": overlap}, each, progress_of(run))
            report |= {"class_names": bool(each.evaluate.class_names)}
            report |= {"outer_step": outer_step, "seed": each.evaluate.seed, "corpus": corpus, "changes": changes}
            assert one.kept
            written = one.kept.finish(report)
            if not changes:
                write_json(run.evaluation, written)
                _show(each, run, written)
                is_own = True
            found["" if not changes else one.kept.file.stem] = written
            say(f"wrote {one.kept.file}")
            tables.append(evaluation_table(report))
        tasks = [asked[0].source.draw(index) for index in range(TASKS_SHOWN)] if is_own else []
        classes = partial(confusion, networks[0], setup, config.evaluate, LocalExecutor()) if is_own else None
        if where := record_evaluation(run, config.tracking, found, tasks, page=is_own, classes=classes):
            say(f"W&B: the results are in {where}")
        return tables


def _show(config: Config, run: RunDirectory, report: Mapping[str, Any]) -> None:
    """Notes in the exported folders what was shown of their networks: `distmeta adapt` goes by it where each class has
    one example."""
    from distmeta.model_card import write_card
    from distmeta.models.description import show

    shown: dict[str, dict[str, float]] = {}
    for method in report["methods"]:
        shown.setdefault(method["network"], {})[method["use"]] = method["accuracy"]
    for folder in (run.model, run.starting):
        if folder.is_dir():
            show(folder, shown)
    if run.model.is_dir():
        write_card(config, run)


def networks_of(
    config: Config, run: RunDirectory, setup: Setup, say: Say, reads_text: bool = False
) -> list["Candidate"]:
    """The networks of a run that are scored: the kept one first. For `reads_text` see `Candidate`.

    Raises:
        UserError: one of them is not there.
    """
    from distmeta.evaluate.networks import Candidate
    from distmeta.run_baselines import MULTITASK, trained_baseline, wanted

    tuned = config.evaluate.fine_tuning_episodes
    if tuned and config.engine.weights == "partitioned":
        say("not fine-tuned on support sets: a network whose weights are partitioned is too large for that")
        tuned = 0
    candidates = [
        Candidate("meta-pretrained", setup, run.best_weights, reads_text),
        Candidate("starting", setup, run.starting_weights, reads_text, fine_tuning_episodes=tuned),
    ]
    for name in wanted(config):
        baseline, directory = trained_baseline(config, run, setup, name)
        # The head of multi-task training says nothing of new classes, and there is no inner loop.
        candidates.append(Candidate(name, baseline, directory.best_weights, reads_text, adapts=name != MULTITASK))
    for candidate in candidates:
        if not candidate.weights.exists():
            raise UserError(f"{candidate.weights} is not there: the run has not kept a network yet")
    return candidates


def say_what(networks: Sequence["ScoredNetwork"], asked: Sequence["Asked"], classes: str, say: Say) -> None:
    """Says what is about to be scored."""
    shapes = [f"{one.episodes} of {as_words(one.source.n_way)}-way {as_words(one.source.k_shot)}-shot" for one in asked]
    count = "1 network" if len(networks) == 1 else f"{len(networks)} networks"
    say(f"evaluating {count} on episodes of {classes}: {', '.join(shapes)}")


@contextmanager
def evaluation_executor(config: Config) -> Iterator[Executor]:
    """Where networks are computed: on the cluster that RAY_ADDRESS names, unless `corpus.executor` is local or this
    machine has a GPU for it; else in this process."""
    import torch

    from distmeta.cluster.named_cluster import named_cluster

    where, device = config.corpus.executor, config.engine.device
    is_here = where == "local" or (where == "auto" and (not named_cluster() or torch.cuda.is_available()))
    if is_here:
        yield LocalExecutor()
        return
    from distmeta.cluster.connect import ray_cluster

    with ray_cluster(config):
        import ray

        gpus = ray.cluster_resources().get("GPU", 0) if device != "cpu" else 0
        yield RayExecutor(num_gpus=1 if gpus else 0)


NAMED = {
    f"evaluate.{key}"
    for key in (
        *("split", "n_way", "k_shot", "query_per_class", "episodes", "seed"),
        *("class_names", "queries_together"),
    )
}
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
        *(["class-names"] if options.class_names else []),
        *(["queries-together"] if options.queries_together else []),
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


def progress_of(run: RunDirectory) -> dict[str, Any]:
    """What its training came to; nothing where that is not written yet."""
    return json.loads(run.summary.read_text(encoding="utf-8")) if run.summary.exists() else {}


def outer_step_of(run: RunDirectory) -> int:
    with safe_open(run.best_weights, framework="pt") as file:
        return int(file.metadata()["outer_step"])
