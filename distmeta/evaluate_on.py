"""The evaluation of networks, of a run or of none, on a labelled set that is named: its classes as episodes, or the
train and test rows that it gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distmeta.config import Config, with_values
from distmeta.corpus.datasets import datasets_of, name_of_path
from distmeta.corpus.executor import Executor
from distmeta.corpus.parts import digest
from distmeta.corpus.prepare import prepare
from distmeta.corpus.tokenizer import tokenizer_identity
from distmeta.errors import UserError
from distmeta.evaluate.kept import UNFINISHED, KeptEvaluation
from distmeta.evaluation_request import EvaluationRequest
from distmeta.impossible import missing_files
from distmeta.ownership import own
from distmeta.run_corpus import own_setup
from distmeta.run_evaluation import (
    evaluation_executor,
    evaluation_name,
    networks_of,
    outer_step_of,
    progress_of,
    say_what,
)
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.signals import stop_on_signal
from distmeta.tasks.names import PLAIN

if TYPE_CHECKING:
    from distmeta.evaluate.given import GivenDraws
    from distmeta.evaluate.networks import ScoredNetwork
    from distmeta.evaluate.run import Asked

Say = Callable[[str], None]

EVALUATIONS, CORPORA = "evaluations", "corpora"
"""Folders of what is evaluated by itself."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    networks: "Sequence[ScoredNetwork]"
    folder: Path
    """Where evaluations go."""
    tokenizer: str
    """Of the corpus that is made of the file; each network has its own besides."""
    max_length: int
    run: RunDirectory | None = None
    config: Config | None = None
    """Of the run."""
    trained: Setup | None = None
    """The parts of the run with the corpus that it began with; None where that is not there."""


def evaluate_models(request: EvaluationRequest, config: Config, folder: Path, say: Say) -> list[str]:
    """Scores the networks that `--model` names on a labelled set, and returns a table as text for each evaluation.

    Written to `evaluations/` in the folder, each under a name of its own.

    Raises:
        UserError: a network, the file, or a column is not there, or the classes cannot fill the episodes.
        Interrupted: a signal ended it.
    """
    from distmeta.evaluate.networks import Candidate
    from distmeta.evaluation_networks import models_of

    base = _config_of_file(request, config)
    networks = models_of(request.model, base, say)
    first = networks[0]
    if isinstance(first, Candidate):
        tokenizer, max_length = str(first.setup.corpus / "tokenizer"), first.setup.manifest.max_length
    else:
        tokenizer, max_length = first.source, first.config.tokenizer.max_length
    subject = Subject(networks, folder / EVALUATIONS, tokenizer, max_length)
    return _evaluate(request, base, subject, say)


def evaluate_run_on(request: EvaluationRequest, config: Config, run: RunDirectory, say: Say) -> list[str]:
    """Scores the networks of a run, and those of `--model` beside them, on a labelled set that is not its own; written
    to the run's `evaluations/`."""
    from distmeta.evaluation_networks import for_labelled_text, models_of

    parts = own_setup(config, run)
    setup = for_labelled_text(config, run)
    base = _config_of_file(request, config)
    networks = [*networks_of(config, run, setup, say, reads_text=True), *models_of(request.model, base, say)]
    tokenizer = str(setup.corpus / "tokenizer")
    subject = Subject(networks, run.evaluations, tokenizer, setup.manifest.max_length, run, config, parts.trained)
    return _evaluate(request, base, subject, say)


def _config_of_file(request: EvaluationRequest, config: Config) -> Config:
    """The configuration with the file of `--on` as its only source."""
    assert request.on is not None
    path = str(Path(request.on).expanduser().absolute()) if Path(request.on).expanduser().exists() else request.on
    source = {
        "path": path,
        "name": name_of_path(request.on),
        "text_column": request.text_column or "text",
        "text_pair_column": request.text_pair_column,
        "label_column": request.label_column,
        "role": "test",
        **({"split": request.on_split} if request.on_split else {}),
    }
    made = with_values(
        config,
        {
            "corpus.sources": [source],
            "corpus.directory": None,
            "tasks.label_column": request.label_column,
            "tasks.text_column": request.text_column or "text",
            "tasks.text_pair_column": request.text_pair_column,
            "tasks.split_files": None,
            "tasks.smlmt_share": None,
            "model.pooling": "auto" if config.model.pooling == "mask" else config.model.pooling,
            "evaluate.split": "test",
        },
    )
    made.evaluate.class_names = _uses_names(made)
    if request.text_pair_column is not None and made.evaluate.class_names:
        raise UserError("evaluate.class_names: a name is one text, and --text-pair-column makes pairs; leave one out")
    if missing := list(missing_files(made)):
        raise UserError("\n".join(line.replace("corpus.sources: ", "--on: ", 1) for line in missing))
    return made


def _evaluate(request: EvaluationRequest, base: Config, subject: Subject, say: Say) -> list[str]:
    from distmeta.evaluate.context import with_context
    from distmeta.evaluate.overlap import count_overlap, describe_overlap
    from distmeta.evaluate.run import evaluate_networks
    from distmeta.evaluate.table import evaluation_table
    from distmeta.tracking.wandb_results import record_evaluation

    root = subject.run.path if subject.run else subject.folder.parent
    with (
        own(root),
        stop_on_signal(lambda: None, "keeping what is scored", say) as stopped,
        evaluation_executor(base) as executor,
    ):
        setup = _prepared(base, subject, executor, say)
        given = _given(request, setup, executor, say) if request.part_column else []
        asked = _asked(request, base, subject, setup, given)
        say_what(subject.networks, asked, f"{request.on}", say)
        judged, *others = [network.name for network in subject.networks]
        reports = evaluate_networks(
            subject.networks,
            asked,
            say,
            options=base.evaluate,
            against=others,
            executor=executor,
            work=subject.folder / UNFINISHED,
            is_stopped=stopped.is_set,
        )
        overlap = count_overlap(setup, subject.trained, "test") if subject.trained else {}
        for line in describe_overlap(overlap, "test"):
            say(line)
        tables, found = [], {}
        for number, (one, report) in enumerate(zip(asked, reports, strict=True)):
            report |= {"on": _what(request, setup), "seed": base.evaluate.seed, "class_names": _uses_names(base)}
            if subject.run and subject.config:
                report = with_context(report | {"overlap": overlap}, subject.config, progress_of(subject.run))
                report["outer_step"] = outer_step_of(subject.run)
            if given:
                report["given"] = {"draws": list(given[number].names), "queries": given[number].queries}
            assert one.kept
            found[one.kept.file.stem] = one.kept.finish(report)
            say(f"wrote {one.kept.file}")
            question = "Did meta-pretraining help?" if subject.run else f"Is {judged} the best of them?"
            tables.append(evaluation_table(report, question))
        if subject.run and subject.config:
            where = record_evaluation(subject.run, subject.config.tracking, found)
            if where:
                say(f"W&B: the results are in {where}")
        return tables


def _uses_names(config: Config) -> bool:
    """Whether the name of each class is one more support example."""
    asked = config.evaluate.class_names
    return config.tasks.class_names is not None if asked is None else asked


def _what(request: EvaluationRequest, setup: Setup) -> dict[str, Any]:
    """What an evaluation is on, as its report says it."""
    columns = ("text_column", "text_pair_column", "label_column", "part_column", "draw_column", "shots_column")
    return {
        "path": request.on,
        "name": datasets_of(setup.config.corpus, setup.config.tasks)[0].name,
        **{key: value for key in columns if (value := getattr(request, key)) is not None},
        "rows": setup.manifest.rows.model_dump(),
        "directory": str(setup.corpus),
        "content_digest": setup.manifest.content_digest,
    }


def _prepared(base: Config, subject: Subject, executor: Executor, say: Say) -> Setup:
    """The parts with the corpus that is made of the file."""
    (dataset,) = datasets_of(base.corpus, base.tasks)
    what = [source.model_dump() for source in dataset.sources]
    name = f"{dataset.name}-{digest([what, tokenizer_identity(subject.tokenizer), subject.max_length])[:8]}"
    folder = subject.folder / CORPORA / name
    folder_config = with_values(base, {"corpus.directory": str(folder)})
    # What it has too few of is said of each evaluation, which knows its ways and shots.
    tasks = folder_config.tasks.model_copy(update={"n_way": 2, "k_shot": 1, "query_per_class": 1})
    try:
        manifest = prepare(
            folder,
            folder_config.corpus,
            folder_config.tokenizer,
            tasks,
            tokenizer_source=subject.tokenizer,
            max_length=subject.max_length,
            executor=executor,
            splits=("test",),
        )
    except UserError as error:
        raise UserError(str(error).replace("corpus.sources: its source", "--on: the file", 1)) from None
    say(manifest.describe())
    return Setup(folder_config, RunDirectory(folder.parent))


def _given(request: EvaluationRequest, setup: Setup, executor: Executor, say: Say) -> "list[GivenDraws]":
    from distmeta.evaluate.given import Columns, read_given

    assert request.part_column is not None
    (dataset,) = datasets_of(setup.config.corpus, setup.config.tasks)
    given = read_given(
        dataset,
        Columns(request.part_column, request.draw_column, request.shots_column),
        setup.config.corpus,
        setup.corpus / "work",
        executor,
        train_part=request.train_part,
        max_queries=request.max_queries,
        name_template=(setup.config.tasks.class_names or PLAIN) if _uses_names(setup.config) else None,
    )
    for each in given:
        for line in each.remarks():
            say(line)
    return given


def _asked(
    request: EvaluationRequest, base: Config, subject: Subject, setup: Setup, given: "Sequence[GivenDraws]"
) -> "list[Asked]":
    """The evaluations, each with the place where it is kept."""
    from distmeta.evaluate.run import Asked

    (dataset,) = datasets_of(base.corpus, base.tasks)
    identities = {network.name: network.identity for network in subject.networks}
    more = [f"outer-step-{outer_step_of(subject.run)}"] if subject.run else []
    more += [] if subject.run and not request.model else [digest(identities)[:8]]

    def kept(name: str, *identity: object) -> KeptEvaluation:
        content = setup.manifest.content_digest
        return KeptEvaluation(subject.folder, name, digest([*identity, content, identities]))

    if given:
        columns = [request.part_column, request.train_part, request.draw_column, request.shots_column]
        options = [*columns, request.max_queries, *([setup.config.tasks.class_names] if _uses_names(base) else [])]
        return [
            Asked(
                each,
                len(each),
                kept(
                    "_".join(
                        [
                            dataset.name,
                            f"{len(each)}-draws",
                            *([f"{each.shots}-shot"] if each.shots else []),
                            *([f"{request.max_queries}-queries"] if request.max_queries else []),
                            *(["class-names"] if _uses_names(base) else []),
                            *more,
                        ]
                    ),
                    options,
                    each.shots,
                ),
            )
            for each in given
        ]
    asked = []
    for shape in request.shapes():
        config = with_values(setup.config, shape)
        for key in ("n_way", "k_shot", "query_per_class"):
            if getattr(config.evaluate, key) is None:
                setattr(config.evaluate, key, getattr(config.tasks, key))
        name = evaluation_name(config.evaluate, more).replace("test_", f"{dataset.name}_", 1)
        source = Setup(config, RunDirectory(setup.corpus.parent)).evaluation_tasks()
        asked.append(Asked(source, config.evaluate.episodes, kept(name, config.evaluate.model_dump())))
    return asked
