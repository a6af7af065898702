"""The page of a classifier that `distmeta adapt` has made."""

import json
from pathlib import Path

from distmeta.adapt.files import ACCOUNT
from distmeta.errors import UserError
from distmeta.report.blocks import Cell, Column, Page, Picture, Section, Table
from distmeta.report.drawing import BLACK, LINES, drawing, percent_axis
from distmeta.report.read import Json
from distmeta.report.units import count, duration, percent, score

MOST_CLASSES = 40
"""Up to which a table of all pairs of classes can be read."""


def is_classifier(path: Path) -> bool:
    """Whether a folder holds a classifier and what was seen of it."""
    return (path / ACCOUNT).exists()


def read_classifier(path: Path) -> Json:
    """What was seen of a classifier.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found: Json = json.loads((path / ACCOUNT).read_text(encoding="utf-8"))
        return found
    except ValueError as error:
        raise UserError(f"{path / ACCOUNT}: cannot be read ({error}); make the classifier again") from None


def classifier_page(found: Json, name: str) -> Page:
    """The page."""
    examples, classes = found["examples"], found["classes"]
    known = "accuracy" in found
    answer = f"{score(found, 'accuracy')} of the examples, each left out in turn." if known else "Not known yet."
    sections = [_tried(found)] if found["tried"] else []
    if known:
        sections += [_growth(found), _calibration(found), _confusion(found), _hardest(found)]
    return Page(
        kind="Classifier",
        title=name,
        subtitle=f"{sum(examples)} examples of {len(classes)} classes",
        question="How often is it right?",
        answer=answer,
        findings=[f"{found['taken']}: {found['why']}.", *(_more(found) if known else [])],
        facts=[
            ("taken", found["taken"]),
            ("examples a class", f"{min(examples)} to {max(examples)}"),
            *([("F1 (macro)", percent(found["f1"])), ("precision", percent(found["precision"]))] if known else []),
            *([("recall", percent(found["recall"]))] if known else []),
        ],
        sections=sections,
        missing=[] if known else ["each class has one example, so that none could be left out"],
    )


def _more(found: Json) -> list[str]:
    """Whether more examples would pay."""
    growth = found["growth"]
    if len(growth) < 2:
        return []
    last, before = growth[-1], growth[-2]
    return [
        f"From {before['examples']} to {last['examples']} examples a class accuracy went from "
        f"{percent(before['accuracy'])} to {percent(last['accuracy'])}: that is what more labels have paid so far."
    ]


def _tried(found: Json) -> Section:
    rows = [
        [
            Cell(each["name"], each["name"], ("taken",) if each["name"] == found["taken"] else ()),
            Cell(score(each, "accuracy"), each["accuracy"]),
            Cell(duration(each["seconds"]), each["seconds"]),
        ]
        for each in sorted(found["tried"], key=lambda each: -each["accuracy"])
    ]
    columns = [Column("network and method", is_text=True), Column("accuracy"), Column("a fit")]
    caption = "On examples that a fit did not have, with 95% intervals over these."
    return Section("What was tried", tables=[Table(columns, rows, caption, sortable=True)])


def _growth(found: Json) -> Section:
    growth = found["growth"]
    with drawing("growth", "Accuracy by examples a class") as drawn:
        axes = drawn.axes
        sizes, values = [each["examples"] for each in growth], [each["accuracy"] for each in growth]
        axes.plot(sizes, values, **LINES[0], linewidth=1.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("examples a class")
        axes.set_ylim(0, 1)
        percent_axis(axes.yaxis)
    label = ", ".join(f"{each['examples']}: {percent(each['accuracy'])}" for each in growth)
    picture = drawn.picture(f"Accuracy by examples a class: {label}.", f"By {growth[0]['method']} on {found['taken']}.")
    return Section("Would more examples pay?", pictures=[picture])


def _calibration(found: Json) -> Section:
    before, after = found["calibration"]["before"], found["calibration"]["after"]
    picture = _reliability(before, after)
    text = f"Calibration error {percent(before['error'])} before and {percent(after['error'])} after calibration."
    return Section("Do the probabilities mean what they say?", paragraphs=[text], pictures=[picture])


def _reliability(before: Json, after: Json) -> Picture:
    with drawing("calibration", "Share right by probability") as drawn:
        axes = drawn.axes
        axes.plot([0, 1], [0, 1], color=BLACK, linestyle=":", linewidth=1)
        for style, name, each in zip(LINES, ("after", "before"), (after, before), strict=False):
            axes.plot(*zip(*each["bins"], strict=True), **style, label=name)
        axes.set_xlabel("probability")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
        drawn.legend()
    return drawn.picture("Share of right predictions by their probability.", "Ten bins of as many predictions each.")


def _confusion(found: Json) -> Section:
    classes, table = found["classes"], found["confusion"]
    if len(classes) <= MOST_CLASSES:
        columns = [Column("true class", is_text=True), *(Column(name) for name in classes)]
        rows = [
            [Cell(name, name), *(Cell(f"{value:g}" if value else "", value) for value in row)]
            for name, row in zip(classes, table, strict=True)
        ]
        return Section("What is taken for what", tables=[Table(columns, rows, "Examples, by predicted class.")])
    pairs = [
        (value, classes[true], classes[predicted])
        for true, row in enumerate(table)
        for predicted, value in enumerate(row)
        if true != predicted and value
    ]
    rows = [[Cell(true), Cell(predicted), Cell(f"{value:g}")] for value, true, predicted in sorted(pairs)[::-1][:30]]
    columns = [Column("true class", is_text=True), Column("predicted", is_text=True), Column("examples")]
    return Section("What is taken for what", tables=[Table(columns, rows, f"Of {count(len(pairs))} pairs.")])


def _hardest(found: Json) -> Section:
    rows = [
        [Cell(each["text"]), Cell(each["label"]), Cell(each["predicted"]), Cell(percent(each["probability"]))]
        for each in found["hardest"]
    ]
    columns = [
        Column("example", is_text=True),
        Column("its label", is_text=True),
        Column("predicted", is_text=True),
        Column("probability of its label"),
    ]
    caption = "Whose label was least likely when they were left out: wrong labels stand here, too."
    return Section("The hardest examples", tables=[Table(columns, rows, caption)])
