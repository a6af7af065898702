"""Small made-up corpora and the settings of tiny runs on them."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHARED = "shared/data"
"""Data sets that lie beside the project, in a folder above it."""

TINY_MODEL = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def case_folder(name: str) -> Path:
    """The folder of a public case of data that went wrong for others; the test is skipped where it is not here."""
    for above in Path(__file__).resolve().parents:
        if (folder := above / SHARED / "cases" / name).is_dir():
            return folder
    pytest.skip(f"{SHARED}/cases/{name} is not here")


def write_labelled_csv(path: Path, classes: int = 18, rows: int = 20) -> Path:
    """Sentences of random words, each with two words of its class."""
    random = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("n", "r", "st", "x")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(classes):
            own = [f"topic{chr(97 + number)}{part}" for part in ("o", "u")]
            for row in range(rows):
                text = [*random.choice(words, random.integers(3, 12)), *own, f"n{row}"]
                writer.writerow([" ".join(random.permutation(text)), f"class {number:02}"])
    return path


def tiny_config(source: Path, **sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of a run of seconds; keyword arguments add to sections or replace what they have."""
    tree: dict[str, dict[str, Any]] = {
        "corpus": {"sources": [str(source)]},
        "tokenizer": {"vocab_size": 600, "max_length": 32},
        "tasks": {"n_way": 3, "k_shot": 2, "query_per_class": 3, "label_column": "label"},
        "model": {"config": TINY_MODEL},
        "meta": {"inner_lr": 0.05, "inner_steps": 2, "outer_lr": 1e-3, "meta_batch_size": 4, "lm_batch_size": 2},
        "train": {"seed": 7, "outer_steps": 10, "checkpoint_every": 5, "validate_every": 0},
        "evaluate": {"episodes": 10},
        "tracking": {"wandb": "disabled"},
    }
    for section, values in sections.items():
        tree[section] = tree.get(section, {}) | values
    return tree
