"""How many of the texts and classes that an evaluation draws from stand in what the network was trained on."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from distmeta.setup import Setup
    from distmeta.tasks.config import Split

MEASURES = {"exact_key": "", "near_key": "_near"}
"""Columns of hashes of texts, and what is put behind the name of a number that is counted by them."""


def count_overlap(evaluated: "Setup", trained: "Setup", split: "Split") -> dict[str, Any]:
    """Return how much of the split `split` of one corpus stands in what another, or the same, was trained on.

    `evaluation_texts` are different to the character. `in_training_tasks` of them, and `in_language_modelling`, stand
    there to the character; with `_near` behind the name, with case, spaces and punctuation set aside. Of the `classes`,
    `classes_in_training_tasks` are trained on under the same name. `hides_words` tells of SMLMT, whose tasks may share
    a text and hide another word of it. What language modelling read of another unlabelled corpus is not kept, and is
    absent, and so is all where a corpus was prepared by a version that kept no hashes.
    """
    parts = [
        *evaluated.manifest.class_parts(evaluated.corpus, split),
        *trained.manifest.class_parts(trained.corpus, "train"),
    ]
    if not all({*MEASURES} <= {*pq.read_schema(part).names} for part in parts):
        return {}
    evaluation = _Texts(evaluated.manifest.class_parts(evaluated.corpus, split))
    tasks = _Texts(trained.manifest.class_parts(trained.corpus, "train"))
    counts: dict[str, Any] = {"evaluation_texts": len(evaluation), **evaluation.count_in(tasks, "in_training_tasks")}
    counts["classes"] = len(evaluation.classes)
    counts["classes_in_training_tasks"] = len(evaluation.classes & tasks.classes)
    counts["hides_words"] = evaluated.config.tasks.label_column is None
    if not trained.wants_language_model:
        counts |= {f"in_language_modelling{suffix}": 0 for suffix in MEASURES.values()}
    elif trained.config.tasks.label_column is not None:
        read = _Texts(trained.manifest.language_modelling_texts(trained.corpus))
        counts |= evaluation.count_in(read, "in_language_modelling")
    elif trained.corpus == evaluated.corpus:  # of unlabelled text it reads every sentence
        counts |= {f"in_language_modelling{suffix}": len(evaluation) for suffix in MEASURES.values()}
    return counts


class _Texts:
    """The hashes of texts in files, of each text that is different to the character once, and the classes there."""

    def __init__(self, parts: Iterable[Path]) -> None:
        tables = [pq.read_table(part, columns=[*MEASURES]) for part in parts]
        columns = {
            name: np.concatenate([np.empty(0, np.int64), *(table[name] for table in tables)]) for name in MEASURES
        }
        exact, first = np.unique(columns["exact_key"], return_index=True)
        self._keys = {"exact_key": exact, "near_key": columns["near_key"][first]}
        self.classes = {
            name
            for part in parts
            if "class" in pq.read_schema(part).names
            for name in pq.read_table(part, columns=["class"])["class"].unique().to_pylist()
        }

    def __len__(self) -> int:
        return len(self._keys["exact_key"])

    def count_in(self, others: "_Texts", name: str) -> dict[str, int]:
        return {
            f"{name}{suffix}": int(np.isin(self._keys[measure], others._keys[measure]).sum())
            for measure, suffix in MEASURES.items()
        }


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
    return [f"{texts}.", f"{about}."]
