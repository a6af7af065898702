"""A saved view in Weights & Biases: `distmeta view`, by wandb-workspaces, which is an extra."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from distmeta.config import Config, load_config
from distmeta.errors import UserError
from distmeta.rundir import RunDirectory
from distmeta.sweep.directory import SweepDirectory, is_sweep
from distmeta.tracking.metrics import read_metrics
from distmeta.tracking.wandb_environment import names
from distmeta.tracking.wandb_run import first_line

STEP = "outer_step"


@dataclass(frozen=True)
class Panel:
    """What is drawn. Names that are not there are left out, and a panel without any."""

    kind: str
    """lines, areas, scatter, table, page, parallel, importance, or figure."""
    title: str
    names: tuple[str, ...]
    x: str = STEP


Sections = dict[str, list[Panel]]

OVER_WORKERS = ("lowest", "mean", "highest")
USES = ("prototype", "inner-loop", "logistic-regression")
PHASES = ("data", "inner", "outer", "communication", "optimizer")
OF_A_RUN: Sections = {
    "Does it learn?": [
        Panel(
            "lines",
            "query accuracy, after and before adapting",
            ("training/query_accuracy", "training/query_accuracy_before"),
        ),
        Panel("lines", "validation", tuple(f"validation/{use}" for use in USES)),
        Panel("lines", "half the 95% interval of the validation", tuple(f"validation/{use}_ci95" for use in USES)),
        Panel("lines", "losses", ("training/query_loss", "training/lm_loss")),
        Panel("lines", "norm of the gradient, and what clipping left", ("training/grad_norm", "training/clip_factor")),
    ],
    "Did it help?": [
        Panel("figure", "accuracy on held-out classes", ("evaluation/accuracy",)),
        Panel("table", "evaluation", ("evaluation/table",)),
        Panel("table", "accuracy by class", ("evaluation/classes",)),
        Panel("table", "which class is taken for which", ("evaluation/confusion",)),
        Panel("table", "some of its tasks", ("tasks/examples",)),
        Panel("page", "the page of distmeta report", ("report",)),
    ],
    "Where does the time go?": [
        Panel("areas", "seconds of a step by phase", tuple(f"time/{phase}" for phase in PHASES)),
        Panel("lines", "tokens a second", ("time/tokens_per_second",)),
    ],
    "What does it cost?": [
        Panel("scatter", "accuracy over cost", ("evaluation/accuracy",), x="cost"),
        Panel("lines", "worker-seconds", ("cost/worker_seconds",)),
        Panel("lines", "operations", ("cost/flops",)),
        Panel("lines", "energy (kWh)", ("cost/energy_kwh",)),
    ],
    "Machines": [
        Panel("lines", f"{title}, over the workers", tuple(f"machine/{name}/{which}" for which in OVER_WORKERS))
        for name, title in (
            ("memory_gib", "memory (GiB)"),
            ("cpus", "processors"),
            ("device", "use of the GPU"),
            ("watts", "power of the GPU (W)"),
        )
    ],
}


def of_a_sweep(swept: Collection[str]) -> Sections:
    """The sections of a sweep over some settings, before those of its runs."""
    return {
        "The sweep": [
            Panel("lines", "best so far over worker-seconds", ("sweep/best_accuracy",), x="sweep/worker_seconds"),
            Panel("parallel", "settings and accuracy", (*swept, "accuracy")),
            Panel("importance", "what matters", ("accuracy",)),
            Panel("scatter", "accuracy over cost", ("accuracy",), x="cost"),
            Panel("table", "trials", ("sweep/trials",)),
        ]
    }


def panels(sections: Sections, there: Collection[str]) -> Iterator[tuple[str, list[Panel]]]:
    """Each section with those of its panels of which something is there, and of these what is."""
    for title, members in sections.items():
        found = []
        for panel in members:
            kept = tuple(name for name in panel.names if name in there)
            if kept and (panel.x == STEP or panel.x in there):
                found.append(Panel(panel.kind, panel.title, kept, panel.x))
        if found:
            yield title, found


def names_of_run(run: RunDirectory) -> set[str]:
    """What a run has in W&B, by its own files."""
    there = {key for row in read_metrics(run.metrics) for key in row} if run.metrics.exists() else set()
    if run.summary.exists():
        there |= set(json.loads(run.summary.read_text(encoding="utf-8")))
    if run.evaluation.exists():
        there |= {f"evaluation/{name}" for name in ("accuracy", "table", "classes", "confusion")}
        there |= {"tasks/examples", "report"}
    return there


def save_view(directory: Path) -> str:
    """Makes a view of the project that a run or a sweep is in, and returns its address.

    Raises:
        UserError: nothing is there, wandb-workspaces is not installed, or the server refuses.
    """
    try:
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise UserError("view: wandb-workspaces is not installed: pip install 'distmeta[view]'") from None
    config, there, sections = describe(directory)
    known = names(config.tracking, directory)
    entity, project = _project(directory) or (known["entity"], known["project"])
    if entity is None:
        raise UserError(
            f"{directory}: whose project it is in is not known, since it was recorded offline: upload it by "
            "`wandb sync`, and set WANDB_ENTITY"
        )
    name = known["name"]
    view = build(entity, project, f"distmeta: {name}", sections, there, workspaces)
    try:
        view.save()
    except Exception as error:
        raise UserError(f"view: W&B does not take it ({first_line(error)})") from None
    return view.url


def describe(directory: Path) -> tuple[Config, set[str], Sections]:
    """The configuration of a run or a sweep, the names that it has in W&B, and the sections of its view.

    Raises:
        UserError: neither is there.
    """
    if not is_sweep(directory):
        run = RunDirectory(directory)
        if not run.config.exists():
            raise UserError(f"{directory}: there is no run and no sweep")
        return load_config(run.config, check=False), names_of_run(run), OF_A_RUN
    sweep = SweepDirectory(directory)
    config = load_config(sweep.config, check=False)
    swept = list(config.sweep.space)
    there = {name for trial in sweep.trial_ids() for name in names_of_run(sweep.trial(trial))}
    there |= {*swept, "sweep/best_accuracy", "sweep/worker_seconds", "sweep/trials"}
    return config, there, of_a_sweep(swept) | OF_A_RUN


def build(entity: str, project: str, name: str, sections: Sections, there: Collection[str], workspaces: Any) -> Any:
    """The view as `wandb_workspaces.workspaces.Workspace`; it is not saved."""
    made = [
        workspaces.Section(title, panels=[_drawn(panel) for panel in members], is_open=True)
        for title, members in panels(sections, there)
    ]
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=made)


def _drawn(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as reports

    first, summary = panel.names[0], reports.SummaryMetric
    if panel.kind in ("lines", "areas"):
        kind: Any = "stacked-area" if panel.kind == "areas" else "line"
        return reports.LinePlot(title=panel.title, x=panel.x, y=list(panel.names), plot_type=kind)
    if panel.kind == "scatter":
        return reports.ScatterPlot(title=panel.title, x=summary(panel.x), y=summary(first))
    if panel.kind == "table":
        return reports.WeavePanelSummaryTable(table_name=first)
    if panel.kind == "page":
        return reports.MediaBrowser(title=panel.title, media_keys=[first])
    if panel.kind == "importance":
        return reports.ParameterImportancePlot(with_respect_to=first)
    if panel.kind == "parallel":
        *swept, goal = panel.names
        columns = [reports.ParallelCoordinatesPlotColumn(reports.Config(name)) for name in swept]
        columns.append(reports.ParallelCoordinatesPlotColumn(summary(goal)))
        return reports.ParallelCoordinatesPlot(title=panel.title, columns=columns)
    return reports.ScalarChart(title=panel.title, metric=summary(first))


def _project(directory: Path) -> tuple[str, str] | None:
    """Entity and project at the server: those of the run's address, or of a trial's; None where none was online."""
    places = [directory, *sorted(directory.glob("trials/*"))]
    for place in places:
        file = place / "wandb.json"
        url = json.loads(file.read_text(encoding="utf-8")).get("url") if file.exists() else None
        if url:
            entity, project, *_ = urlparse(url).path.strip("/").split("/")
            return entity, project
    return None
