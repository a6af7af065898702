"""The few-shot table of evaluation.json, and what its intervals support."""

from typing import Any

from distmeta.evaluate.kept import other_corpus
from distmeta.evaluate.overlap import describe_overlap
from distmeta.evaluate.results import TOGETHER
from distmeta.evaluate.sentences import describe_similarity, describe_used, episodes_text, findings, same_networks
from distmeta.report.blocks import Cell, Column, Section, Table
from distmeta.report.read import Json
from distmeta.report.run_pictures import methods_plot
from distmeta.report.units import NONE, count, duration, percent, points, score, setting
from distmeta.tasks.config import as_words

SHOWN = {f"evaluate.{key}" for key in ("split", "n_way", "k_shot", "query_per_class", "episodes")}
"""Settings of an evaluation that its line about the episodes shows."""


def helped(evaluation: Json | None) -> tuple[str, list[str]]:
    """The answer to whether training helped, beyond the strongest rival that was run, and what it rests on."""
    if not evaluation or not evaluation.get("methods"):
        return "Not known yet: there is no evaluation.", []
    found = evaluation.get("verdict")
    if not found:
        return "Not known: nothing was compared with it; evaluate the run again.", _verdicts(evaluation)
    about = [*findings(evaluation), *found["notes"], *_verdicts(evaluation), *same_networks(evaluation)]
    about = list(dict.fromkeys(about))
    if evaluation["split"] == "train":
        return "Not known: the evaluation is of the classes that it was trained on.", about
    if evaluation["split"] == "valid":
        about.append("The evaluation is of the classes that chose the network.")
    return found["text"], about


def _verdicts(evaluation: Json) -> list[str]:
    return [f"{verdict['text']}." for verdict in evaluation.get("verdicts", [])]


def better_than(evaluation: Json | None, against: str) -> str:
    """Whether it is better than the network `against`, use by use."""
    verdicts = (evaluation or {}).get("verdicts", [])
    if (evaluation or {}).get("split") == "train":
        return "Not known: the evaluation is of the classes that it was trained on."
    about = [verdict for verdict in verdicts if verdict["against"].startswith(f"{against} ")]
    better = [verdict for verdict in about if verdict["gain"] > verdict.get("gain_ci95", float("inf"))]
    worse = [verdict for verdict in about if verdict["gain"] < -verdict.get("gain_ci95", float("inf"))]
    if not about:
        return f"Not known: nothing was compared with {against}."
    if len(better) == len(about):
        return "Yes." if len(about) == 1 else "Yes, in every use of the network."
    if better:
        uses = ", ".join(_use(verdict) for verdict in better)
        return f"In part: for {uses}" + (f"; worse for {', '.join(map(_use, worse))}." if worse else ".")
    if worse:
        where = "" if len(worse) == len(about) else f" for {', '.join(map(_use, worse))}"
        return f"No: it is worse{where}."
    return "Not that these episodes can show."


def best_method(evaluation: Json | None) -> list[str]:
    """A line about the highest accuracy of the table, whoever has it; none without a table."""
    if not evaluation:
        return []
    alone = [method for method in evaluation["methods"] if method["use"] != TOGETHER]
    method = max(alone, key=lambda method: method["accuracy"])
    return [f"Highest accuracy of the table: {method['name']}, {score(method, 'accuracy')}."]


def evaluation_section(evaluation: Json, title: str = "Few-shot evaluation", name: str = "methods") -> Section:
    """The table, and the same as a picture, which has a `name` of its own on the page."""
    section = _section(evaluation, title)
    section.pictures.append(methods_plot(evaluation, name))
    return section


def other_evaluation(evaluation: Json) -> Section:
    """The table of an evaluation that is not the run's own, under a title that says what it is of."""
    title = f"Also evaluated: {ways(evaluation)}"
    section = _section(evaluation, title)
    changes = {key: value for key, value in evaluation.get("changes", {}).items() if key not in SHOWN}
    if changes:
        settings = ", ".join(f"{key} {setting(value)}" for key, value in changes.items())
        section.paragraphs.append(f"Other settings than the run's: {settings}.")
    if "outer_step" in evaluation:
        section.paragraphs.append(f"The kept network was then that of outer step {count(evaluation['outer_step'])}.")
    return section


def _section(evaluation: Json, title: str) -> Section:
    columns = ["accuracy", "before adaptation", "paired gain (points)", "precision", "recall", "F1", "adaptation"]
    rows = [
        [
            Cell(_name(method), method["name"]),
            Cell(score(method, "accuracy"), method["accuracy"]),
            _percent_cell(method.get("accuracy_before")),
            Cell(points(method.get("paired_gain"), method.get("paired_gain_ci95")), method.get("paired_gain")),
            *(_percent_cell(method.get(key)) for key in ("precision", "recall", "f1")),
            Cell(duration(method.get("adapt_seconds")), method.get("adapt_seconds")),
        ]
        for method in evaluation["methods"]
        if method["network"] not in evaluation.get("same", {})
    ]
    about_overlap = describe_overlap(evaluation.get("overlap", {}), evaluation["split"])
    caption = (
        "95% intervals over the episodes. Paired gain: mean difference to the starting network in the same use on the "
        "same episodes (tf-idf: to its logistic regression). Adaptation: seconds from a support set to a classifier."
    )
    main = Table([Column("method", is_text=True), *map(Column, columns)], rows, caption, sortable=True)
    return Section(
        title,
        paragraphs=[
            f"{episodes_text(evaluation)}, the same for every method.",
            *about_overlap,
            *(f"{line[0].upper()}{line[1:]}." for line in other_corpus(evaluation)),
            *same_networks(evaluation),
            *describe_used(evaluation),
            *describe_similarity(evaluation),
        ],
        tables=[main, *_by_dataset(evaluation)],
    )


def _by_dataset(evaluation: Json) -> list[Table]:
    """Where the episodes are of several data sets: the accuracy of each method on each of them."""
    found = evaluation.get("by_dataset", {})
    if not found:
        return []
    methods = [{method["name"]: method for method in own["methods"]} for own in found.values()]
    columns = [Column("method", is_text=True)]
    columns += [Column(f"{name or 'without a name'} ({own['episodes']})") for name, own in found.items()]
    rows = [
        [
            Cell(name, name),
            *(
                Cell(score(each[name], "accuracy"), each[name]["accuracy"]) if name in each else Cell(NONE)
                for each in methods
            ),
        ]
        for name in dict.fromkeys(name for each in methods for name in each)
    ]
    return [Table(columns, rows, "Accuracy by data set, with the number of its episodes.", sortable=True)]


def ways(evaluation: Json) -> str:
    """What an evaluation is of, and in what ways: `meta-test, 5-way 5-shot`."""
    name = evaluation["on"]["name"] if "on" in evaluation else f"meta-{evaluation['split']}"
    return f"{name}, {as_words(evaluation['n_way'])}-way {as_words(evaluation['k_shot'])}-shot"


def _percent_cell(value: Any) -> Cell:
    return Cell(percent(value), value) if value is not None else Cell(NONE)


def _name(method: Json) -> str:
    return method["name"] + (f" (first {method['episodes']} episodes)" if "episodes" in method else "")


def _use(verdict: Json) -> str:
    return verdict["text"].partition(":")[0]
