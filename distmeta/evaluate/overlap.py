"""How many of the texts and classes that an evaluation draws from stand in what the network was trained on."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distmeta.corpus.datasets import serves
from distmeta.corpus.overlap import MEASURES, Texts, count_each, has_hashes
from distmeta.tasks.class_shards import read_index

if TYPE_CHECKING:
    from distmeta.corpus.dataset_report import DatasetReport
    from distmeta.setup import Setup
    from distmeta.tasks.config import Split

ClassName = tuple[str, str]
"""The name of its data set, where the evaluation and the training are of one corpus, and its own."""


def count_overlap(evaluated: "Setup", trained: "Setup", split: "Split") -> dict[str, Any]:
    """Return how much of the split `split` of one corpus stands in what another, or the same, was trained on.

    `evaluation_texts` are different to the character. `in_training_tasks` of them, and `in_language_modelling`, stand
    there to the character; with `_near` behind the name, with case, spaces and punctuation set aside. Of the `classes`,
    `classes_in_training_tasks` are trained on under the same name: in the same data set, where it is one corpus.
    `hides_words` tells of SMLMT, whose tasks may share a text and hide another word of it. Where tasks come from
    several data sets, `by_dataset` has the same of each by its name, whatever data set has its texts too. What language
    modelling read of another unlabelled corpus is not kept, and is absent, and so is all where a corpus was prepared by
    a version that kept no hashes.
    """
    datasets = _serving(evaluated, split)
    parts = [evaluated.manifest.class_parts(evaluated.corpus, split, each.name) for each in datasets]
    trained_on = _serving(trained, "train")
    tasks = [trained.manifest.class_parts(trained.corpus, "train", each.name) for each in trained_on]
    if not has_hashes([part for own in (*parts, *tasks) for part in own]):
        return {}
    is_same = trained.corpus == evaluated.corpus
    known = {name for each, own in zip(trained_on, tasks, strict=True) for name in _classes(each.name, own, is_same)}
    names = [_classes(each.name, own, is_same) for each, own in zip(datasets, parts, strict=True)]

    groups, group_names = [_all(parts)], [set().union(*names)]
    if len(datasets) > 1:
        groups, group_names = [*groups, *parts], [*group_names, *names]
    texts = [Texts(group) for group in groups]
    in_tasks = count_each(texts, _all(tasks))
    in_text = _in_language_modelling(texts, trained, is_same)
    total, *by_dataset = [
        {
            "evaluation_texts": len(own),
            **_named("in_training_tasks", in_tasks[place]),
            "classes": len(classes),
            "classes_in_training_tasks": len(classes & known),
            **(_named("in_language_modelling", in_text[place]) if in_text else {}),
        }
        for place, (own, classes) in enumerate(zip(texts, group_names, strict=True))
    ]
    counts: dict[str, Any] = total | {"hides_words": not any(each.labelled for each in datasets)}
    if by_dataset:
        own = zip(datasets, by_dataset, strict=True)
        counts["by_dataset"] = {each.name: count | {"hides_words": not each.labelled} for each, count in own}
    return counts


def _serving(setup: "Setup", split: "Split") -> "list[DatasetReport]":
    datasets = setup.manifest.datasets
    found = [each for each in datasets if serves(each, split, len(datasets), setup.config.tasks)]
    return [each for each in found if each.classes[split].parts]


def _all(parts: Sequence[Sequence[Path]]) -> list[Path]:
    return [part for own in parts for part in own]


def _classes(dataset: str, parts: Iterable[Path], is_same: bool) -> set[ClassName]:
    return {(dataset if is_same else "", each.name) for each in read_index(parts)}


def _named(name: str, counts: Mapping[str, int]) -> dict[str, int]:
    return {f"{name}{MEASURES[measure]}": count for measure, count in counts.items()}


def _in_language_modelling(texts: Sequence[Texts], trained: "Setup", is_same: bool) -> list[dict[str, int]] | None:
    """Return how many of each of the texts language modelling reads; None where that is not known."""
    if not trained.wants_language_model:
        return [dict.fromkeys(MEASURES, 0) for _ in texts]
    if kept := trained.manifest.language_modelling_texts(trained.corpus):
        return count_each(texts, kept)
    # Where all text is without labels it reads every sentence.
    return [dict.fromkeys(MEASURES, len(each)) for each in texts] if is_same else None


def describe_overlap(overlap: Mapping[str, Any], split: str) -> list[str]:
    """Return what `count_overlap` found, a sentence or two an item; nothing for what another version has counted."""
    if "in_training_tasks_near" not in overlap:
        return []
    another = " (with another word hidden)" if overlap["hides_words"] and split != "train" else ""
    texts = (
        f"Of {overlap['evaluation_texts']:,} texts that the episodes are drawn from, {overlap['in_training_tasks']:,} "
        f"stand in training tasks to the character{another}, and {overlap['in_training_tasks_near']:,} with case, "
        "spaces and punctuation set aside"
    )
    if "in_language_modelling" in overlap:
        in_text, near = overlap["in_language_modelling"], overlap["in_language_modelling_near"]
        texts += f"; in the language-modelling text, {in_text:,} and {near:,}"
    classes, known = overlap["classes"], overlap["classes_in_training_tasks"]
    if known == classes:
        about = f"All {classes:,} classes are those of training tasks: this tells how well they are known, not new ones"
    elif known:
        about = f"{known:,} of the {classes:,} classes are in training tasks under the same name"
    else:
        about = f"None of the {classes:,} classes is in training tasks"
    if split == "valid":
        about += "; the step whose weights were kept was chosen by them"
    return [f"{texts}.", f"{about}.", *_describe_datasets(overlap.get("by_dataset", {}))]


def _describe_datasets(by_dataset: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence on the data sets whose texts stand in training, and one on those of which none does."""
    some = {
        name: counts
        for name, counts in by_dataset.items()
        if counts["in_training_tasks_near"] or counts.get("in_language_modelling_near")
    }
    told = [
        f"{name or 'without a name'} {counts['in_training_tasks_near']:,}"
        + (f" and {counts['in_language_modelling_near']:,}" if "in_language_modelling_near" in counts else "")
        + f" of {counts['evaluation_texts']:,}"
        for name, counts in some.items()
    ]
    none = [name or "without a name" for name in by_dataset if name not in some]
    lines = []
    if told:
        lines.append(
            "By data set, near texts in training tasks and in the language-modelling text, where it reads any: "
            f"{'; '.join(told)}."
        )
    if none:
        lines.append(f"No text of these data sets stands in training: {', '.join(none)}.")
    return lines
