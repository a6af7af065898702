"""The command line."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distmeta.cluster.machine import limit_threads
from distmeta.errors import Interrupted, UserError
from distmeta.paths import folder_of, local_path, network_of
from distmeta.signals import EXIT_STATUS, interrupted_by_signals
from distmeta.store.folders import as_given, close_folders

app = typer.Typer(
    name="distmeta",
    help="Meta-pretraining of language models: raw text in, a network that learns new tasks from a few examples out.",
    epilog="Begin with `distmeta config > run.yaml`, edit it, then `distmeta pretrain --config run.yaml`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def config_option(otherwise: str) -> Any:
    """The option --config; `otherwise` says what holds without it."""
    return typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        parser=lambda text: local_path(text, "--config"),
        help=f"Configuration (YAML). Without it, {otherwise}.",
    )


ConfigFile = Annotated[Path | None, config_option("that of the run in --run-dir, else all defaults")]
ConfigOfRun = Annotated[Path | None, config_option("that of the run")]
AnyConfig = Annotated[Path | None, config_option("all defaults")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Sets one key, whatever the file has there, e.g. --set meta.inner_lr=0.05. Repeatable.",
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        parser=lambda text: folder_of(text, "--run-dir"),
        help="Where the run is kept, a path or an address such as s3://bucket/run. Default: runs/NAME, after the "
        "configuration file, without one runs/default.",
    ),
]


def say(text: str) -> None:
    """Tells the user something about the run; standard output is for results."""
    try:
        print(as_given(text), file=sys.stderr, flush=True)
    except OSError:
        # Its terminal is closed, or its reader (`| tee`) died of the signal that ends this command, too: that is no
        # reason to break off.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@app.command()
def config(config: AnyConfig = None, set: Overrides = None) -> None:
    """Print the whole configuration: every key with its value and a line of meaning, ready to be saved and edited."""
    from distmeta.config import load_config, to_yaml

    print(to_yaml(load_config(config, set or []), comments=True), end="")


@app.command()
def prepare(
    config: ConfigFile = None,
    set: Overrides = None,
    run_dir: RunDir = None,
    show_dropped: Annotated[
        bool, typer.Option("--show-dropped", help="List where the first dropped rows stand, by file and reason.")
    ] = False,
) -> None:
    """Prepare the corpus: clean, split, tokenize, and gather the examples of each class. Finished work is kept."""
    from distmeta.opening import open_run

    run = open_run(config, set or [], run_dir)

    from distmeta.pipeline import dropped_rows, prepare

    prepare(*run, say)
    if show_dropped:
        for line in dropped_rows(*run):
            print(line)


@app.command()
def tasks(
    config: ConfigFile = None,
    set: Overrides = None,
    run_dir: RunDir = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "train",
    start: Annotated[int, typer.Option(min=0, help="Index of the first task.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many tasks.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a task instead of text.")] = False,
) -> None:
    """Show the tasks that a run draws, without a cluster and model weights. Prepares the corpus if that is missing."""
    from distmeta.opening import open_run

    run = open_run(config, set or [], run_dir)

    from distmeta.pipeline import draw_tasks

    for task in draw_tasks(*run, split, start, count, say):
        print(json.dumps(task.as_json(), ensure_ascii=False) if as_json else task.as_text(), flush=True)


@app.command()
def pretrain(
    config: ConfigFile = None,
    set: Overrides = None,
    run_dir: RunDir = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint; begin where there is none.")
    ] = False,
) -> None:
    """Prepare what is missing, meta-pretrain, export and evaluate."""
    from distmeta.opening import open_run

    run = open_run(config, set or [], run_dir, to_train=True, resume=resume)

    from distmeta.pipeline import pretrain

    print(pretrain(*run, resume=resume, say=say))


@app.command()
def evaluate(
    config: ConfigOfRun = None,
    set: Overrides = None,
    run_dir: RunDir = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            parser=network_of,
            help="A network: a run (the one it keeps), an exported folder, any encoder or decoder (a folder, a hub "
            "name, package:NAME/FOLDER). Repeatable: the first one is judged, the others are its rivals; with "
            "--run-dir they are rivals of the run.",
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The labelled set to evaluate on: whatever corpus.sources takes. Without it, the held-out classes of "
            "the run.",
        ),
    ] = None,
    on_split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split of a set on a hub. Default: train.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of FILE with the text. Default: text.")
    ] = None,
    text_pair_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with the second text, where it has pairs.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column with the class.")] = None,
    part_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column that says which rows are for training and which for testing: these are the episodes then.",
        ),
    ] = None,
    train_part: Annotated[
        str | None, typer.Option(metavar="VALUE", help="What it has of training rows. Default: train.")
    ] = None,
    draw_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with the draw: each one is an episode.")
    ] = None,
    shots_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with the shots: each number is an evaluation.")
    ] = None,
    max_queries: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Test the first so many rows of a draw alone.")
    ] = None,
    n_way: Annotated[
        list[str] | None,
        typer.Option(metavar="N|all", help="Classes of an episode. Repeatable: each with each --k-shot."),
    ] = None,
    k_shot: Annotated[list[str] | None, typer.Option(metavar="K", help="Support texts a class. Repeatable.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NxK", help="Ways and shots that go together, such as allx1. Repeatable."),
    ] = None,
    query_per_class: Annotated[int | None, typer.Option(min=1, metavar="Q", help="Query texts a class.")] = None,
    episodes: Annotated[int | None, typer.Option(min=1, metavar="E", help="Episodes of each evaluation.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=lambda text: local_path(text, "--output"),
            help="Without --run-dir: evaluations are kept in DIR/evaluations. Default: runs/evaluation.",
        ),
    ] = None,
) -> None:
    """Score networks on few-shot episodes: those of a run, or any, on held-out classes or on a labelled set.

    \b
    distmeta evaluate --run-dir runs/demo --n-way all --n-way 5
    distmeta evaluate --run-dir runs/demo --on texts.csv --label-column label
    distmeta evaluate --model runs/demo --model bert-base-uncased --on texts.csv --label-column label --output out

    Each is kept in DIR/evaluations under what it is of, and none takes the place of another. One that was stopped goes
    on when it is asked for again. `distmeta report DIR` makes a page of them.
    """
    from distmeta.evaluation_request import EvaluationRequest

    request = EvaluationRequest(
        model=tuple(model or ()),
        on=on,
        on_split=on_split,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=label_column,
        part_column=part_column,
        train_part=train_part,
        draw_column=draw_column,
        shots_column=shots_column,
        max_queries=max_queries,
        n_way=tuple(n_way or ()),
        k_shot=tuple(k_shot or ()),
        shape=tuple(shape or ()),
        query_per_class=query_per_class,
        episodes=episodes,
        output=output,
    )
    from distmeta.evaluation_command import evaluate

    print("\n\n".join(evaluate(request, config, set or [], run_dir, say)))


@app.command()
def export(config: ConfigOfRun = None, set: Overrides = None, run_dir: RunDir = None) -> None:
    """Write the kept network of a run as a Hugging Face folder (DIR/model) again, and print where it is."""
    from distmeta.opening import reopen_run

    run = reopen_run(config, set or [], run_dir)

    from distmeta.pipeline import export

    print(as_given(str(export(*run))))


@app.command()
def sweep(
    config: ConfigFile = None,
    set: Overrides = None,
    run_dir: RunDir = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on: what is finished stays, what was running goes on.")
    ] = False,
) -> None:
    """Run trials over the section `sweep`, choose the best on the meta-valid classes, and score it on fresh ones.

    Without --config and --run-dir the sweep is kept in runs/sweep.
    """
    from distmeta.sweep.command import open_sweep, sweep

    print(sweep(*open_sweep(config, set or [], run_dir, resume=resume), resume=resume, say=say))


@app.command()
def report(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            parser=lambda text: folder_of(text, "DIR"),
            help="Runs, one sweep, one --output of evaluate, or what `adapt` has written.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=lambda text: local_path(text, "--output"), help="Default: DIR/report.html."
        ),
    ] = None,
) -> None:
    """Write one HTML page with the pictures of a run, of several side by side, or of a sweep, and print where it is."""
    from distmeta.report import write_report

    print(as_given(str(write_report(directories, output))))


@app.command()
def adapt(
    model: Annotated[
        str,
        typer.Argument(
            parser=network_of,
            metavar="MODEL",
            help="A run, whose networks are all tried, a folder that it exported, or any encoder or decoder: a folder, "
            "a hub name, package:NAME/FOLDER.",
        ),
    ],
    examples: Annotated[
        str, typer.Option(metavar="FILE", help="Labelled texts: CSV, TSV, JSON lines, Parquet; one a class is enough.")
    ],
    label_column: Annotated[str, typer.Option(metavar="NAME", help="Column with the class.")],
    output: Annotated[
        Path,
        typer.Option(metavar="DIR", parser=lambda text: local_path(text, "--output"), help="Where it is kept."),
    ],
    text_column: Annotated[str, typer.Option(metavar="NAME", help="Column with the text.")] = "text",
    text_pair_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with the second text, where it has pairs.")
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the file, as cp1252. Default: UTF-8, or what a mark says."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="prototype, logistic-regression, inner-loop, contrastive or fine-tune; auto: by cross-validation.",
        ),
    ] = "auto",
    seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="Time for trying what changes the network.")
    ] = 30.0,
    class_names: Annotated[
        bool, typer.Option("--class-names", help="The labels say what the classes are: each is one more example.")
    ] = False,
    queries_together: Annotated[
        bool,
        typer.Option("--queries-together", help="Let texts that are predicted, 1,024 at a time, move the prototypes."),
    ] = False,
) -> None:
    """Make a classifier of a network and a few labelled texts.

    \b
    distmeta adapt runs/mixture --examples mine.csv --label-column label --output mine
    distmeta predict mine more.csv --output predicted.csv
    """
    from distmeta.adapt.command import Columns, adapt
    from distmeta.adapt.rows import encoding_of

    columns = Columns(text_column, text_pair_column, encoding_of(encoding))
    lines = adapt(
        model,
        examples,
        output,
        columns,
        label_column,
        method=method,
        seconds=seconds,
        class_names=class_names,
        queries_together=queries_together,
        say=say,
    )
    for line in lines:
        print(line, flush=True)


@app.command()
def predict(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", parser=lambda text: local_path(text, "DIR"), help="What `distmeta adapt` has written."
        ),
    ],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", parser=lambda text: local_path(text, "FILE"), help="Texts: CSV, TSV, JSON lines, Parquet."
        ),
    ],
    text_column: Annotated[str, typer.Option(metavar="NAME", help="Column with the text.")] = "text",
    text_pair_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with the second text, where it has pairs.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=lambda text: local_path(text, "--output"),
            help="CSV, JSON lines or Parquet, by its ending. Default: standard output.",
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the file, as cp1252. Default: UTF-8, or what a mark says."),
    ] = None,
    abstain_below: Annotated[
        float, typer.Option(min=0, max=1, metavar="P", help="Leave the label out where its probability is lower.")
    ] = 0.0,
    precision: Annotated[
        str,
        typer.Option(
            metavar="fp32|bf16|auto",
            help="Of the network's passes; auto: the faster. A few labels may differ.",
        ),
    ] = "fp32",
) -> None:
    """Write the rows of a table with the label of each and its probability. Memory does not grow with the table."""
    from distmeta.adapt.classifier import precision_of
    from distmeta.adapt.command import Columns, predict
    from distmeta.adapt.rows import encoding_of

    columns, passes = Columns(text_column, text_pair_column, encoding_of(encoding)), precision_of(precision)
    predict(directory, file, output, columns, abstain_below=abstain_below, precision=passes, say=say)


@app.command()
def push(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            parser=lambda text: folder_of(text, "DIR"),
            help="A run, a folder that it exported, or what `distmeta adapt` has written.",
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the repository: USER/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="For everybody; without it, private.")] = False,
) -> None:
    """Upload a network, or a classifier, with its card to the Hugging Face hub, and print where it is."""
    from distmeta.pushing import push

    print(push(directory, name, public=public))


@app.command()
def view(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", parser=lambda text: folder_of(text, "DIR"), help="A run, or a sweep."),
    ],
) -> None:
    """Save a view of the project in Weights & Biases that a run or a sweep is in, and print its address."""
    from distmeta.tracking.view import save_view

    print(save_view(directory))


@app.command()
def plan(
    config: ConfigFile = None,
    set: Overrides = None,
    run_dir: RunDir = None,
    rate: Annotated[
        float | None,
        typer.Option(min=1, metavar="FLOPS", help="Operations a second of one worker; without it some steps are run."),
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0, metavar="GIB", help="Memory of a worker; without it, that of this machine.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=2, max=2**16, metavar="NUMBER", help="Say it for 1, 2, 4 and so on up to so many workers too."
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(min=1e-3, metavar="GBIT", help="Gbit/s between workers, for --workers; without it 10."),
    ] = None,
) -> None:
    """Say what a run (with a section `sweep`: the sweep, too) will take: memory, operations, time and money.

    Prepares the corpus if that is missing, and keeps the forecast in DIR/plan.json for the report.
    """
    from distmeta.sweep.command import plan

    print(plan(config, set or [], run_dir, rate=rate, memory=memory, workers=workers, bandwidth=bandwidth, say=say))


@app.command()
def doctor(
    config: ConfigFile = None,
    set: Overrides = None,
    run_dir: RunDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a finding instead of text.")] = False,
) -> None:
    """Look over the cluster that RAY_ADDRESS names, or this machine, and say what would keep the run from going well.

    Of each node: software, accelerator, storage, network, clock, disk and memory. Exit status 2 where there is a fault.
    """
    from distmeta.opening import open_run

    run = open_run(config, set or [], run_dir)

    from distmeta.cluster.doctor import doctor

    is_well = True
    for finding in doctor(*run, say):
        is_well = is_well and finding.level != "fault"
        print(json.dumps(vars(finding)) if as_json else finding, flush=True)
    if not is_well:
        raise typer.Exit(2)


def main() -> None:
    """Runs the command; exit status 0 only on success, 2 for what the user can mend, 130 after an interruption."""
    limit_threads()
    # Containers and some sites set none: what a run makes not everybody is to write.
    os.umask(os.umask(0o022) | 0o002)
    try:
        goes_on = "; --resume goes on" if sys.argv[1:2] in (["pretrain"], ["sweep"]) else ""
        with interrupted_by_signals(f"what is finished is kept{goes_on}"):
            try:
                app()
            finally:
                close_folders()
    except UserError as error:
        for line in str(error).splitlines():
            say(f"distmeta: {line}")
        sys.exit(2)
    except Interrupted as interruption:
        say(f"distmeta: {interruption}")
        sys.exit(EXIT_STATUS)


if __name__ == "__main__":
    main()
