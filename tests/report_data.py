"""Made-up run and sweep directories, as the trainer leaves them, for the tests of the page; and its elements."""

import json
import math
import random
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
STEP_PHASES = {"data": 0.01, "inner": 0.12, "outer": 0.07, "communication": 0.02, "optimizer": 0.015}


def config(**changes: Any) -> Json:
    """The keys of a resolved configuration that the page reads; `meta__inner_lr=0.1` changes one."""
    tree: Json = {
        "tasks": {"n_way": 5, "k_shot": 5, "label_column": None},
        "model": {"name_or_path": None, "config": {"hidden_size": 128}},
        "meta": {"algorithm": "fomaml", "inner_lr": 0.05, "inner_steps": 5, "outer_lr": 0.001},
        "engine": {"zero_stage": 1},
        "train": {"num_workers": 2, "outer_steps": 600, "select_by": "inner-loop", "validate_every": 50},
        "tracking": {"price_per_worker_hour": 1.5, "currency": "EUR"},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        tree.setdefault(section, {})[name] = value
    return tree


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Sequence[Json]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metrics_rows(steps: int, *, peak: float = 0.75, warmup: int = 0, seed: int = 0) -> list[Json]:
    """Rows of an accuracy that rises from chance towards `peak`; no tasks in the first `warmup` steps."""
    noise = random.Random(seed)
    rows, wall = [], 0.0
    for step in range(1, steps + 1):
        seconds = {phase: mean * noise.uniform(0.8, 1.2) for phase, mean in STEP_PHASES.items()}
        wall += sum(seconds.values()) * 1.02
        row: Json = {"outer_step": step}
        if step > warmup:
            learned = 1 - math.exp(-3 * (step - warmup) / (steps - warmup))
            accuracy = 0.2 + (peak - 0.2) * learned + noise.gauss(0, 0.05)
            row |= {
                "training/query_loss": 1.6 - 1.0 * learned + noise.gauss(0, 0.08),
                "training/query_accuracy": min(max(accuracy, 0), 1),
                "training/query_accuracy_before": min(max(0.2 + 0.04 * learned + noise.gauss(0, 0.03), 0), 1),
                "training/support_loss": [1.609 * math.exp(-(0.05 + 0.3 * learned) * inner) for inner in range(5)],
                "training/inner_lr": 0.05,
            }
        row |= {
            "training/lm_loss": 3 + 5.5 * math.exp(-4 * step / steps) + noise.gauss(0, 0.1),
            "time/step": sum(seconds.values()),
            **{f"time/{phase}": spent for phase, spent in seconds.items()},
            "cost/wall_seconds": wall,
            "cost/worker_seconds": 2 * wall,
            "cost/flops": 1.3e9 * step,
        }
        rows.append(row)
    return rows


def validation_rows(steps: int, *, peak: float = 0.7, every: int = 50, seed: int = 0) -> list[Json]:
    """A validation at step 0 and every so many steps, rising towards `peak`."""
    noise = random.Random(seed)
    rows = []
    for step in range(0, steps + 1, every):
        learned = 1 - math.exp(-4 * step / 600)
        accuracy = 0.23 + (peak - 0.23) * learned + noise.gauss(0, 0.012)
        rows.append(
            {
                "outer_step": step,
                "inner-loop": accuracy,
                "inner-loop_ci95": 0.025,
                "prototype": accuracy - 0.03,
                "prototype_ci95": 0.026,
                "prototype-all-way": 0.3 * accuracy,
            }
        )
    return rows


def evaluation(networks: dict[str, float], verdicts: Sequence[Json]) -> Json:
    """A few-shot table of networks with their accuracies; the starting one has to be among them."""
    methods: list[Json] = []
    for use, shift in (("inner-loop", 0.0), ("prototype", 0.01), ("logistic-regression", 0.02)):
        for network, accuracy in networks.items():
            method = {"name": f"{network} {use}", "network": network, "use": use, "accuracy": accuracy + shift}
            method |= {"accuracy_ci95": 0.021, "precision": accuracy, "recall": accuracy, "f1": accuracy - 0.02}
            method["adapt_seconds"] = 0.05
            if use == "inner-loop":
                method["accuracy_before"] = 0.2
            if network != "starting":
                gain = accuracy - networks["starting"]
                method |= {"paired_gain": gain, "paired_gain_ci95": 0.03, "paired_with": f"starting {use}"}
            methods.append(method)
    methods.append(
        {
            "name": "tf-idf logistic-regression",
            "network": "tf-idf",
            "use": "logistic-regression",
            "accuracy": 0.501,
            "accuracy_ci95": 0.022,
            "precision": 0.51,
            "recall": 0.5,
            "f1": 0.49,
            "adapt_seconds": 0.01,
        }
    )
    return {
        "split": "test",
        "n_way": 5,
        "k_shot": 5,
        "query_per_class": 5,
        "episodes": 200,
        "methods": methods,
        "verdict": None,
        "verdicts": list(verdicts),
        "same": {},
        "overlap": {
            "evaluation_texts": 1790,
            "in_training_tasks": 1756,
            "in_training_tasks_near": 1760,
            "classes": 30,
            "classes_in_training_tasks": 0,
            "hides_words": True,
            "in_language_modelling": 1790,
            "in_language_modelling_near": 1790,
        },
    }


def headline(judged: str, against: str, gain: float, accuracy: float) -> Json:
    """What an evaluation says first: the judged network's best use against the strongest rival."""
    text = (
        f"Yes: {100 * accuracy:.1f} ± 2.1 by logistic-regression, better than the strongest rival, {against}, by "
        f"{100 * gain:.1f} ± 3.0 points."
    )
    own = {"method": f"{judged} logistic-regression", "against": against, "gain": gain, "gain_ci95": 0.03}
    use = own | {"text": f"logistic-regression: better than {against} by {100 * gain:.1f} ± 3.0 points"}
    return own | {"answer": "yes", "text": text, "uses": [use], "notes": ["Multi-task training was not run."]}


def verdict(method: str, use: str, against: str, gain: float, half_width: float = 0.03) -> Json:
    """What the evaluation says of a network in one use beside another network in the same."""
    if abs(gain) <= half_width:
        said = f"no difference to {against} that 200 episodes can show"
    else:
        word = "better" if gain > 0 else "worse"
        said = f"{word} than {against} by {100 * abs(gain):.1f} ± {100 * half_width:.1f} points"
    names = {"method": f"{method} {use}", "against": f"{against} {use}"}
    return names | {"gain": gain, "gain_ci95": half_width, "text": f"{use}: {said}"}


def summary(steps: int, best: Json, *, pace: float = 1.0) -> Json:
    """What a run of so many steps was, whose best validation is given; a step takes a quarter second times `pace`."""
    wall = 0.25 * pace * steps
    phases = {phase: mean * steps for phase, mean in STEP_PHASES.items()}
    return {
        "outer_step": steps,
        "best_step": best["outer_step"],
        "best_score": best["inner-loop"],
        "best_score_ci95": best["inner-loop_ci95"],
        "accuracy": best["inner-loop"],
        "accuracy_ci95": best["inner-loop_ci95"],
        "starting_score": 0.23,
        "wall_seconds": wall,
        "worker_seconds": 2 * wall,
        "tokens": 2290 * steps,
        "lm_tokens": 1100 * steps,
        "flops": 1.3e9 * steps,
        "phase_seconds": phases | {"validation": 0.008 * steps, "checkpoint": 0.004 * steps},
        "startup_seconds": 6.4,
        "peak_memory_bytes": 913 * 2**20,
        "cost": 2 * wall / 3600 * 1.5,
        "currency": "EUR",
    }


def make_run(path: Path, *, steps: int = 600, peak: float = 0.72, seed: int = 0, **changes: Any) -> Path:
    """A run that has ended, with everything that a run can leave."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config(**changes)), encoding="utf-8")
    validation = validation_rows(steps, peak=peak, seed=seed)
    write_lines(path / "metrics.jsonl", metrics_rows(steps, peak=peak + 0.03, warmup=steps // 10, seed=seed))
    write_lines(path / "validation.jsonl", validation)
    best = max(validation, key=lambda row: row["inner-loop"])
    outcome = summary(steps, best)
    write_json(path / "summary.json", outcome)
    scores = {"meta-pretrained": peak - 0.02, "starting": 0.24}
    gains = [verdict("meta-pretrained", use, "starting", peak - 0.26) for use in ("inner-loop", "prototype")]
    found = headline("meta-pretrained", "tf-idf logistic-regression", peak - 0.5, peak)
    write_json(path / "evaluation.json", evaluation(scores, gains) | {"verdict": found})
    planned = {"wall_seconds": 0.9, "worker_seconds": 0.9, "flops": 1.05, "peak_memory_bytes": 0.95, "cost": 0.9}
    plan = {key: outcome[key] * factor for key, factor in planned.items()}
    write_json(path / "plan.json", plan | {"currency": "EUR"})
    return path


STATUSES = (
    ["finished"] * 4 + ["stopped", "stopped", "diverged", "stopped", "failed", "stopped", "finished", "stopped"]
) + ["running", "interrupted"]
"""Of the fourteen trials of `make_sweep`."""


def make_sweep(path: Path, *, ended: bool = True, seed: int = 3) -> Path:
    """A sweep of fourteen trials over both learning rates, with one trial of every status; the best one is 0003."""
    draw = random.Random(seed)
    space = {
        "meta.inner_lr": {"type": "loguniform", "low": 0.001, "high": 0.5},
        "meta.outer_lr": {"type": "loguniform", "low": 0.0001, "high": 0.01},
    }
    options = {"num_trials": 14, "search": "random", "scheduler": "asha", "space": space}
    path.mkdir(parents=True)
    tree = config() | {"sweep": options}
    (path / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    rows = []
    for number, status in enumerate(STATUSES):
        if ended and status in ("running", "interrupted"):
            status = "stopped"
        rates = (0.05, 0.001) if number == 0 else (10 ** draw.uniform(-3, -0.3), 10 ** draw.uniform(-4, -2))
        if number == 3:
            rates = (0.12, 0.0021)
        row = _trial(path, f"{number:04d}", rates, status)
        rows.append(row)
    write_lines(path / "trials.jsonl", rows)
    if ended:
        _end_sweep(path, rows)
    return path


def _trial(sweep: Path, trial_id: str, rates: tuple[float, float], status: str) -> Json:
    inner, outer = rates
    distance = (math.log10(inner / 0.12)) ** 2 + (math.log10(outer / 0.0021)) ** 2
    stopped = 100 if distance > 1 else 300
    steps = {"finished": 600, "stopped": stopped, "running": 200, "interrupted": 150}.get(status, 100)
    run = sweep / "trials" / trial_id
    swept = {"meta.inner_lr": inner, "meta.outer_lr": outer}
    row: Json = {"trial_id": trial_id, "config": swept, "status": status}
    row |= {"wall_seconds": 0.0, "worker_seconds": 0.0, "flops": 0.0, "cost": 0.0}
    write_json(run / "trial.json", {"trial_id": trial_id, "config": swept, "status": status})
    validation = validation_rows(steps, peak=0.73 - 0.16 * distance, seed=int(trial_id))
    if status == "failed":
        return row | {"reason": "train.num_workers: a worker was lost 4 times\nRayActorError: <no more memory>"}
    write_lines(run / "validation.jsonl", validation)
    done = summary(steps, max(validation, key=lambda each: each["inner-loop"]), pace=1 + 0.03 * (int(trial_id) % 5))
    row |= {"outer_step": steps, "startup_seconds": 11.8 if trial_id == "0000" else 2.1 + 0.1 * int(trial_id)}
    row |= {key: done[key] for key in ("wall_seconds", "worker_seconds", "flops")}
    if status == "diverged":
        return row | {"reason": "query loss nan at outer step 100", "cost": done["cost"]}
    if status == "running":
        return row
    write_json(run / "summary.json", done)
    row |= {key: done[key] for key in ("accuracy", "accuracy_ci95", "best_step", "cost")}
    return row | {"starting_accuracy": 0.23}


def _end_sweep(path: Path, rows: list[Json]) -> None:
    scored = sorted((row for row in rows if "accuracy" in row), key=lambda row: -row["accuracy"])
    totals: Json = {key: sum(row[key] for row in rows) for key in ("wall_seconds", "worker_seconds", "flops", "cost")}
    outcome = {"num_trials": len(rows), "best_trial": scored[0]["trial_id"], **totals, "currency": "EUR"}
    write_json(path / "summary.json", outcome | {"worker_seconds_to_the_end": 1.9 * totals["worker_seconds"]})
    planned = {key: 1.6 * totals[key] for key in ("wall_seconds", "worker_seconds", "cost")}
    write_json(path / "plan.json", planned | {"num_trials": 14, "peak_memory_bytes": 900 * 2**20})
    chosen = [*scored[:3], *(row for row in scored[3:] if row["trial_id"] == "0000")]
    networks = {f"trial {row['trial_id']}": row["accuracy"] - 0.02 for row in chosen} | {"starting": 0.24}
    best = f"trial {scored[0]['trial_id']}"
    against = (("starting", 0.46), ("trial 0000", 0.05))
    gains = [verdict(best, use, other, gain) for use in ("inner-loop", "prototype") for other, gain in against]
    selection = [
        {
            "trial_id": row["trial_id"],
            "valid_accuracy": row["accuracy"],
            "valid_accuracy_ci95": 0.025,
            "test_accuracy": row["accuracy"] - 0.02,
            "test_accuracy_ci95": 0.021,
        }
        for row in chosen
    ]
    found = headline(best, "trial 0000 logistic-regression", 0.05, networks[best] + 0.02)
    write_json(path / "evaluation.json", evaluation(networks, gains) | {"verdict": found, "selection": selection})


class Elements(HTMLParser):
    """The elements of a page, each with its attributes, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
