"""The page of evaluations that belong to no run: what `distmeta evaluate --output DIR` has put into DIR."""

from dataclasses import dataclass
from pathlib import Path

from distmeta.errors import UserError
from distmeta.report.blocks import Cell, Column, Page, Section, Table
from distmeta.report.evaluation import evaluation_section, ways
from distmeta.report.read import Json, read_evaluation_files
from distmeta.report.units import NONE, score


@dataclass
class Evaluations:
    """The evaluations in a folder."""

    name: str
    found: list[Json]
    unreadable: list[str]


def has_evaluations(path: Path) -> bool:
    """Whether a folder holds evaluations and no run."""
    return not (path / "config.yaml").exists() and any((path / "evaluations").glob("*.json"))


def read_evaluations(path: Path, name: str) -> Evaluations:
    """The evaluations in a folder.

    Raises:
        UserError: none of them can be read.
    """
    unreadable: list[str] = []
    found = read_evaluation_files(path / "evaluations", unreadable)
    if not found:
        raise UserError(f"{path}: none of its evaluations can be read; {'; '.join(unreadable)}")
    return Evaluations(name, found, unreadable)


def evaluations_page(evaluations: Evaluations) -> Page:
    """The page: all in one table, and then each by itself."""
    found = evaluations.found
    texts = [(each.get("verdict") or {}).get("text", "") for each in found]
    networks = list(dict.fromkeys(method["network"] for each in found for method in each["methods"]))
    judged = networks[0]
    best = sum(text.startswith("Yes") for text in texts)
    return Page(
        kind="Evaluation",
        title=evaluations.name,
        subtitle=", ".join(dict.fromkeys(each["on"]["path"] for each in found if "on" in each)),
        question=f"Is {judged} the best of them?",
        answer=f"In {best} of {len(found)} evaluations." if len(found) > 1 else texts[0],
        findings=[f"{title(each)}: {text}" for each, text in zip(found, texts, strict=True) if text],
        facts=[("evaluations", str(len(found))), ("networks", ", ".join(networks))],
        sections=[
            *([_overview(found)] if len(found) > 1 else []),
            *(evaluation_section(each, title(each), f"methods-{number}") for number, each in enumerate(found)),
        ],
        missing=evaluations.unreadable,
    )


def title(evaluation: Json) -> str:
    """What an evaluation is called among others."""
    if "given" in evaluation:
        return f"{ways(evaluation)}, {evaluation['episodes']} given draws"
    return f"{ways(evaluation)}, {evaluation['episodes']} episodes, seed {evaluation.get('seed', NONE)}"


def _overview(found: list[Json]) -> Section:
    names = list(dict.fromkeys(method["name"] for each in found for method in each["methods"]))
    by_name = [{method["name"]: method for method in each["methods"]} for each in found]
    rows = [
        [
            Cell(name, name),
            *(
                Cell(score(methods[name], "accuracy"), methods[name]["accuracy"]) if name in methods else Cell(NONE)
                for methods in by_name
            ),
        ]
        for name in names
    ]
    columns = [Column("method", is_text=True), *(Column(ways(each)) for each in found)]
    return Section("Accuracy", tables=[Table(columns, rows, "95% intervals over the episodes.", sortable=True)])
