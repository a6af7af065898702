"""The page of one run."""

from collections.abc import Iterable
from typing import Any

from distmeta.report import run_pictures as pictures
from distmeta.report.blocks import Page, Picture, Section
from distmeta.report.evaluation import best_method, evaluation_section, helped, other_evaluation
from distmeta.report.plan import plan_section
from distmeta.report.read import Kept, Run, Settings, kept_network
from distmeta.report.units import NONE, count, duration, memory, money, percent, setting
from distmeta.tasks.config import as_words
from distmeta.train.outcome import candidates_in_words, in_words


def run_page(run: Run) -> Page:
    """The page of a run; what the run does not have is left out and said."""
    missing = list(run.unreadable)
    curves = _drawn(
        [
            (pictures.accuracy_curves(run), "query accuracy: no step has had a task yet"),
            (pictures.loss_curves(run), "loss curves: no step is on record"),
            (pictures.inner_loop_curve(run), "the inner-loop curve: no step has had an inner loop"),
            (pictures.validation_curves(run), "accuracy on meta-valid classes: there is no validation"),
        ],
        missing,
    )
    phases = _drawn([(pictures.time_by_phase(run), "time by phase: was not recorded")], missing)
    sections: list[Section | None] = [
        Section("Learning curves", pictures=curves),
        Section("Where the time went", pictures=phases),
    ]
    if run.evaluation:
        sections.insert(0, evaluation_section(run.evaluation))
    else:
        missing.append("the few-shot table: there is no evaluation yet (`distmeta evaluate`)")
    others = [other_evaluation(each) for each in run.evaluations]
    plan = plan_section(run.plan, run.summary, (run.summary or {}).get("currency", ""), missing)
    wandb = Section("Weights & Biases", paragraphs=run.wandb)
    sections += [*others, plan, wandb, settings_section(run.settings, missing)]
    answer, findings = helped(run.evaluation)
    return Page(
        kind="Run",
        title=run.name,
        subtitle=_subtitle(run),
        question="Did meta-pretraining help?",
        answer=answer,
        findings=findings + best_method(run.evaluation),
        facts=run_facts(run),
        sections=[section for section in sections if section],
        missing=missing,
    )


def state(run: Run) -> str:
    """How a run stands, in a few words."""
    steps = run.settings.get("train.outer_steps")
    if run.summary and "diverged" in run.summary:
        return f"diverged ({run.summary['diverged']})"
    if early := (run.summary or {}).get("ended_early"):
        return f"finished after {count(run.outer_step)} of {count(steps)} outer steps ({early['reason']})"
    if run.summary and (steps is None or run.outer_step >= steps):
        return f"finished after {count(run.outer_step)} outer steps"
    of = f" of {count(steps)}" if steps is not None else ""
    if run.summary:
        return f"ended early, at outer step {count(run.outer_step)}{of}"
    return f"not finished: at outer step {count(run.outer_step)}{of}"


def cost(run: Run) -> float | None:
    """What the workers' time cost; None where no price is set or the run goes on."""
    return (run.summary or {}).get("cost") or None


def run_facts(run: Run) -> list[tuple[str, str]]:
    """The figures of a run that stand at the top of its page, as names and values."""
    summary = run.summary or {}
    kept = kept_network(run)
    spent = cost(run)
    facts = [
        ("kept network" if run.summary else "best so far", NONE if kept.step is None else _network(kept)),
        ("meta-valid accuracy", percent(kept.accuracy, kept.half_width)),
        ("before training", percent(summary.get("starting_score"))),
        ("chosen from", candidates_in_words(summary) or NONE),
        ("training time", duration(run.total("wall_seconds"))),
        ("worker time", duration(run.total("worker_seconds"))),
        ("start-up", duration(summary.get("startup_seconds"))),
        ("cost", "no price is set" if run.summary and spent is None else money(spent, summary.get("currency", ""))),
        ("peak memory of a worker", memory(summary.get("peak_memory_bytes"))),
        ("operations", count(run.total("flops"))),
        ("tokens", count(summary.get("tokens"))),
    ]
    return [(name, value) for name, value in facts if value != NONE]


def _network(kept: Kept) -> str:
    return f"step {count(kept.step)}" + (f" {in_words(kept.start_share)}" if kept.start_share else "")


def settings_section(settings: Settings, missing: list[str]) -> Section | None:
    """The resolved configuration, folded away."""
    if not settings.text:
        missing.append("the settings: there is no config.yaml")
        return None
    return Section("Settings", folded=settings.text)


def _subtitle(run: Run) -> str:
    keys = (
        ("tasks.n_way", "{}-way"),
        ("tasks.k_shot", "{}-shot"),
        ("meta.algorithm", "{}"),
        ("meta.inner_steps", "{} inner steps"),
        ("meta.inner_lr", "inner rate {}"),
        ("meta.outer_lr", "outer rate {}"),
        ("train.num_workers", "workers: {}"),
        ("engine.zero_stage", "ZeRO {}"),
    )
    values = [(run.settings.get(key), text) for key, text in keys]
    return ", ".join([state(run), *(text.format(_words(value)) for value, text in values if value is not None)])


def _words(value: Any) -> str:
    return as_words(value) if isinstance(value, list) else setting(value)


def _drawn(drawings: Iterable[tuple[Picture | None, str]], missing: list[str]) -> list[Picture]:
    kept = []
    for picture, reason in drawings:
        if picture:
            kept.append(picture)
        else:
            missing.append(reason)
    return kept
