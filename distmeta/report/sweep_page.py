"""The page of a sweep."""

from collections import Counter
from statistics import median
from typing import Any

from distmeta.report import sweep_pictures as pictures
from distmeta.report.blocks import Cell, Column, Page, Section, Table
from distmeta.report.evaluation import best_method, better_than, evaluation_section, helped, other_evaluation
from distmeta.report.plan import plan_section
from distmeta.report.read import DEFAULT_TRIAL, Json, Sweep, Trial
from distmeta.report.run_page import settings_section
from distmeta.report.units import NONE, count, duration, memory, money, percent, points, score, setting


def sweep_page(sweep: Sweep) -> Page:
    """The page of a sweep; what the sweep does not have is left out and said."""
    missing = list(sweep.unreadable)
    currency = sweep.settings.get("tracking.currency") or ""
    drawn = [
        (pictures.plane(sweep), "accuracy over the swept values: no numeric key with two values and an accuracy"),
        (pictures.trial_curves(sweep), "the trials' curves: none has validated yet"),
        (pictures.accuracy_against_cost(sweep, currency), "accuracy against cost: no trial has ended with an accuracy"),
    ]
    missing += [reason for picture, reason in drawn if picture is None]
    found = [picture for picture, _ in drawn if picture] + pictures.over_other_keys(sweep)
    sections = [
        Section("What was found", pictures=found),
        Section("Every trial", tables=[trials_table(sweep, currency)]),
        *_selection_sections(sweep, missing),
        *(other_evaluation(each) for each in sweep.evaluations),
        startup_section(sweep, missing),
        plan_section(sweep.plan, _happened(sweep), currency, missing),
        Section("Weights & Biases", paragraphs=sweep.wandb),
        settings_section(sweep.settings, missing),
    ]
    answer, findings = _answer(sweep)
    return Page(
        kind="Sweep",
        title=sweep.name,
        subtitle=_subtitle(sweep),
        question="Which setting is best, and does it beat the default?",
        answer=answer,
        findings=findings,
        facts=_facts(sweep, currency),
        sections=[section for section in sections if section],
        missing=missing,
    )


def _subtitle(sweep: Sweep) -> str:
    statuses = Counter(trial.status for trial in sweep.trials)
    planned = sweep.settings.get("sweep.num_trials")
    of = f" of {planned}" if planned and planned > len(sweep.trials) else ""
    how = [f"{name} {value}" for name in ("search", "scheduler") if (value := sweep.settings.get(f"sweep.{name}"))]
    counts = ", ".join(f"{number} {status}" for status, number in statuses.items())
    return ", ".join([f"{len(sweep.trials)}{of} trials ({counts})", *how])


def _answer(sweep: Sweep) -> tuple[str, list[str]]:
    """Which trial won, how it compares with the default on fresh classes, and what that rests on."""
    best, default = sweep.best, sweep.default
    if best is None:
        return "Not known yet: no trial has come to a result.", []
    values = ", ".join(f"{key} = {setting(value)}" for key, value in best.config.items())
    found = [f"Trial {best.trial_id}: {values}.", f"Meta-valid: {percent(best.accuracy, best.accuracy_ci95)}"]
    if default is not None and default is not best and default.accuracy is not None:
        found[-1] += f"; the default: {percent(default.accuracy, default.accuracy_ci95)}"
    found[-1] += "."
    if not sweep.summary:
        return f"Trial {best.trial_id} is best so far.", found
    against_all, verdicts = helped(sweep.evaluation)
    beats_default = better_than(sweep.evaluation, f"trial {DEFAULT_TRIAL}")
    if best is default:
        answer = "The default setting is the best one."
    elif sweep.evaluation:
        answer = f"Trial {best.trial_id}. Better than the default? {beats_default}"
    else:
        answer = f"Trial {best.trial_id} is best on the meta-valid classes."
    held = [f"Better than everything else in its table? {against_all}"] if sweep.evaluation else []
    return answer, found + held + verdicts + best_method(sweep.evaluation)


def _facts(sweep: Sweep, currency: str) -> list[tuple[str, str]]:
    totals = sweep.summary or {}

    def total(key: str) -> float | None:
        return totals.get(key) or sum(getattr(trial, key) or 0.0 for trial in sweep.trials) or None

    spent, to_the_end = total("worker_seconds"), totals.get("worker_seconds_to_the_end")
    price = total("cost")
    facts = [
        ("trials", str(len(sweep.trials))),
        ("time", duration(totals.get("wall_seconds"))),
        ("worker time", duration(spent)),
        ("cost", money(price, currency) if price else "no price is set"),
        ("operations", count(total("flops"))),
        ("without a scheduler", duration(to_the_end)),
        ("saved by the scheduler", percent(1 - spent / to_the_end) if spent and to_the_end else NONE),
    ]
    return [(name, value) for name, value in facts if value != NONE]


def trials_table(sweep: Sweep, currency: str) -> Table:
    """Every trial, failures with their reason, the best and the default marked."""
    columns: list[tuple[Column, Any]] = [(Column("trial", is_text=True), lambda trial: _name_cell(sweep, trial))]
    for key in sweep.swept:
        values = [trial.config[key] for trial in sweep.trials if key in trial.config]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        columns.append((Column(key, is_text=not numeric), lambda trial, key=key: _setting_cell(trial, key)))
    columns += [
        (Column("status", is_text=True), lambda trial: Cell(trial.status, trial.status, note=trial.reason or "")),
        (Column("meta-valid accuracy"), lambda trial: _cell(percent, trial.accuracy, trial.accuracy_ci95)),
        (Column("before training"), lambda trial: _cell(percent, trial.starting_accuracy)),
        (Column("kept step"), lambda trial: _cell(count, trial.best_step)),
        (Column("last step"), lambda trial: _cell(count, trial.outer_step)),
        (Column("time"), lambda trial: _cell(duration, trial.wall_seconds)),
        (Column("worker time"), lambda trial: _cell(duration, trial.worker_seconds)),
        (Column("operations"), lambda trial: _cell(count, trial.flops)),
        (Column("cost"), lambda trial: _cell(money, trial.cost, currency)),
        (Column("start-up"), lambda trial: _cell(duration, trial.startup_seconds)),
        (Column("peak memory"), lambda trial: _cell(memory, trial.peak_memory_bytes)),
    ]
    made = [(column, [make(trial) for trial in sweep.trials]) for column, make in columns]
    # A column that no trial has anything for says nothing.
    made = [(column, cells) for column, cells in made if any(cell.value is not None for cell in cells)]
    rows = [list(row) for row in zip(*(cells for _, cells in made), strict=True)]
    caption = "Click a heading to sort. Accuracy of the network that is kept, with its 95% interval."
    return Table([column for column, _ in made], rows, caption, sortable=True)


def _selection_sections(sweep: Sweep, missing: list[str]) -> list[Section]:
    if not sweep.evaluation:
        missing.append("the meta-test table and the winner's luck: there is no evaluation yet")
        return []
    selection: list[Json] = sweep.evaluation.get("selection", [])
    rows = [
        [
            Cell(f"trial {row['trial_id']}", row["trial_id"]),
            Cell(score(row, "valid_accuracy"), row.get("valid_accuracy")),
            Cell(score(row, "test_accuracy"), row.get("test_accuracy")),
            Cell(points(_difference(row)), _difference(row)),
        ]
        for row in selection
    ]
    scored_on = fresh(sweep.evaluation)
    columns = [Column("", is_text=True), Column("meta-valid (chosen by)"), Column(scored_on)]
    table = Table([*columns, Column("difference (points)")], rows, "Other classes may also be harder or easier.")
    chosen = (
        [Section("The winner's luck", pictures=[pictures.luck(selection, scored_on)], tables=[table])]
        if selection
        else []
    )
    return [*chosen, evaluation_section(sweep.evaluation)]


def fresh(evaluation: Json) -> str:
    """The classes of the evaluation, and whether none of them chose or trained anything."""
    return f"meta-{evaluation['split']}" + (" (fresh)" if evaluation["split"] == "test" else " (not fresh)")


def _difference(row: Json) -> float | None:
    if "valid_accuracy" not in row or "test_accuracy" not in row:
        return None
    return row["test_accuracy"] - row["valid_accuracy"]


def startup_section(sweep: Sweep, missing: list[str]) -> Section | None:
    """What the first trial and the later ones took before their first step."""
    started = [trial for trial in sweep.trials if trial.startup_seconds is not None]
    if not started:
        missing.append("start-up of the trials: was not recorded")
        return None
    first, *later = [trial.startup_seconds or 0.0 for trial in started]
    text = f"From the launch to the first outer step: {duration(first)} for trial {started[0].trial_id}, the first one"
    if later:
        spread = f"{duration(min(later))} to {duration(max(later))}"
        text += f"; {duration(median(later))} for the middle one of the {len(later)} later ones ({spread})"
    return Section("Start-up", paragraphs=[f"{text}."])


def _happened(sweep: Sweep) -> Json | None:
    """The totals of a sweep that has ended, with the memory of its largest worker."""
    if not sweep.summary:
        return None
    peaks = [trial.peak_memory_bytes for trial in sweep.trials if trial.peak_memory_bytes]
    return sweep.summary | ({"peak_memory_bytes": max(peaks)} if peaks else {})


def _name_cell(sweep: Sweep, trial: Trial) -> Cell:
    marks = ((sweep.best, "best" if sweep.summary else "best so far"), (sweep.default, "default"))
    return Cell(trial.trial_id, trial.trial_id, tuple(label for marked, label in marks if trial is marked))


def _setting_cell(trial: Trial, key: str) -> Cell:
    value = trial.config.get(key)
    if key not in trial.config:
        return Cell("")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(setting(value), value if number else setting(value))


def _cell(write: Any, value: Any, *more: Any) -> Cell:
    return Cell(NONE) if value is None else Cell(write(value, *more), value)
