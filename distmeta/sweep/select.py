"""Which trial won, said honestly: chosen on the meta-valid classes, scored again on the meta-test classes."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from distmeta.config import Config, load_config, to_yaml
from distmeta.corpus.parts import digest, file_digest
from distmeta.errors import UserError
from distmeta.evaluate.kept import UNFINISHED, KeptEvaluation
from distmeta.evaluate.run import Candidate, evaluate_candidates
from distmeta.evaluate.sentences import interval_text
from distmeta.evaluate.table import evaluation_table
from distmeta.files import write_json, write_text
from distmeta.recipes import filled
from distmeta.run_evaluation import evaluation_name
from distmeta.setup import Setup
from distmeta.signals import stop_on_signal
from distmeta.sweep.directory import SweepDirectory
from distmeta.sweep.schedule import DEFAULT_TRIAL
from distmeta.sweep.space import trial_config

TOTALS = ("worker_seconds", "flops", "cost")


def ranked(config: Config, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials that came to a result, best first by `sweep.metric`.

    Raises:
        UserError: there is none.
    """
    options = config.sweep
    metric = options.metric[0] if isinstance(options.metric, list) else options.metric
    mode = options.mode[0] if isinstance(options.mode, list) else options.mode
    good = [row for row in rows if row["status"] in ("finished", "stopped") and "accuracy" in row]
    if not good:
        reasons = {row["reason"].splitlines()[0] for row in rows if "reason" in row}
        raise UserError("\n".join(["no trial came to a result; see trials.jsonl", *sorted(reasons)]))
    return sorted(good, key=lambda row: row[metric], reverse=mode == "max")


def choose(config: Config, sweep: SweepDirectory, rows: Sequence[dict[str, Any]], say: Callable[[str], None]) -> str:
    """Writes `best.yaml`, `evaluation.json` and `summary.json`; returns the outcome as text."""
    order = ranked(config, rows)
    best = order[0]
    made = filled(trial_config(config, best["config"]))
    write_text(sweep.best, to_yaml(made))
    report = _evaluate(config, sweep, order, say)
    write_json(sweep.evaluation, report)
    summary: dict[str, Any] = {"num_trials": len(rows), "best_trial": best["trial_id"]}
    summary["wall_seconds"] = json.loads(sweep.elapsed.read_text())
    summary |= {key: sum(row[key] for row in rows) for key in TOTALS}
    summary["worker_seconds_to_the_end"] = sum(_to_the_end(sweep, row) for row in rows)
    summary["peak_memory_bytes"] = max(row.get("peak_memory_bytes", 0) for row in rows)
    summary["currency"] = config.tracking.currency
    write_json(sweep.summary, summary)
    question = f"Did the sweep help? Trial {best['trial_id']}, best on the meta-valid classes:"
    parts = [_trials_table(rows, best["trial_id"]), evaluation_table(report, question), _luck(report), _spent(summary)]
    return "\n\n".join(parts)


def _evaluate(
    config: Config, sweep: SweepDirectory, order: Sequence[dict[str, Any]], say: Callable[[str], None]
) -> dict[str, Any]:
    """The best few, the configuration as it stands, and the starting network, on the same fresh episodes."""
    best = _setup(config, sweep, order[0]["trial_id"])
    chosen = list(order[: config.sweep.evaluate_best])
    chosen += [row for row in order[len(chosen) :] if row["trial_id"] == DEFAULT_TRIAL]
    setups = {row["trial_id"]: _setup(config, sweep, row["trial_id"]) for row in chosen}
    # Episodes can be shared only where texts, classes and tokenizer are the same.
    alike = [row for row in chosen if setups[row["trial_id"]].corpus == best.corpus]
    for row in chosen:
        if row not in alike:
            say(f"trial {row['trial_id']} has another corpus than the best one, and is not evaluated beside it")
    candidates = [
        Candidate(_name(row), setups[row["trial_id"]], sweep.trial(row["trial_id"]).best_weights) for row in alike
    ]
    starting = sweep.trial(order[0]["trial_id"]).starting_weights
    against = ["starting", *(candidate.name for candidate in candidates[1:] if DEFAULT_TRIAL in candidate.name)]
    candidates.append(Candidate("starting", best, starting))
    networks = {candidate.name: file_digest(candidate.weights) for candidate in candidates}
    identity = digest([best.config.evaluate.model_dump(), best.manifest.content_digest, networks])
    kept = KeptEvaluation(sweep.evaluations, evaluation_name(best.config.evaluate, []), identity)
    with stop_on_signal(lambda: None, "keeping what is scored", say) as stopped:
        report = evaluate_candidates(
            candidates,
            say,
            against,
            rivals=[*against, "tf-idf"],  # and not the sweep's other trials
            kept=kept,
            work=sweep.evaluations / UNFINISHED,
            is_stopped=stopped.is_set,
        )
    methods = {method["name"]: method for method in report["methods"]}
    use = best.config.train.select_by.removesuffix("-all-way")
    report |= {"selection": [_selection(row, methods[f"{_name(row)} {use}"]) for row in alike]}
    return kept.finish(report)


def _selection(row: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    """A trial's accuracy on the classes that chose it beside that on fresh ones."""
    selection = {"trial_id": row["trial_id"]}
    for split, scores in (("valid", row), ("test", method)):
        selection |= {f"{split}_{key}": scores[key] for key in ("accuracy", "accuracy_ci95") if key in scores}
    return selection


def _setup(config: Config, sweep: SweepDirectory, trial_id: str) -> Setup:
    run = sweep.trial(trial_id)
    made = load_config(run.config, check=False)
    for key, value in config.evaluate:
        if value is not None:
            setattr(made.evaluate, key, value)
    return Setup(made, run)


def _name(row: dict[str, Any]) -> str:
    return f"trial {row['trial_id']}"


def _to_the_end(sweep: SweepDirectory, row: dict[str, Any]) -> float:
    """Worker-seconds that a trial would have taken to its last step at its own pace."""
    if row["status"] != "stopped":
        return row["worker_seconds"]
    steps = load_config(sweep.trial(row["trial_id"]).config, check=False).train.outer_steps
    return row["worker_seconds"] * steps / row["outer_step"]


def _trials_table(rows: Sequence[dict[str, Any]], best: str) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row["config"]))
    header = ["trial", *keys, "status", "meta-valid", "step", "worker s", "cost"]
    lines = [header]
    for row in rows:
        values = [_short(row["config"][key]) if key in row["config"] else "" for key in keys]
        notes = {best: " best", DEFAULT_TRIAL: " default"}
        lines.append(
            [
                row["trial_id"] + notes.get(row["trial_id"], ""),
                *values,
                row["status"],
                _interval(row, "accuracy"),
                str(row.get("outer_step", 0)),
                f"{row['worker_seconds']:.0f}",
                f"{row['cost']:.2f}",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _luck(report: dict[str, Any]) -> str:
    fresh = " (fresh)" if report["split"] == "test" else " (not fresh)"
    lines = [f"trial  meta-valid (chosen by)  meta-{report['split']}{fresh}"]
    for row in report["selection"]:
        lines.append(f"{row['trial_id']}   {_interval(row, 'valid_accuracy'):22}  {_interval(row, 'test_accuracy')}")
    return "\n".join(lines)


def _spent(summary: dict[str, Any]) -> str:
    saved = 1 - summary["worker_seconds"] / max(summary["worker_seconds_to_the_end"], 1e-9)
    return (
        f"{summary['num_trials']} trials took {summary['worker_seconds']:.0f} worker-seconds, {summary['flops']:.2e} "
        f"floating-point operations, {summary['cost']:.2f} {summary['currency']}; ending trials early saved "
        f"{saved:.0%} of the worker-seconds"
    )


def _interval(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return ""
    return interval_text(row[key], row.get(f"{key}_ci95"))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
