"""Helpers of the corpus tests: prepare a small corpus, and read what came of it."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from distmeta.corpus.config import CorpusConfig, TokenizerConfig
from distmeta.corpus.executor import Executor, LocalExecutor
from distmeta.corpus.manifest import Manifest
from distmeta.corpus.prepare import prepare
from distmeta.tasks.config import SPLITS, Split, TasksConfig

ANIMALS = ["cat", "dog", "horse", "sheep", "goat", "duck", "goose", "mouse", "snail", "crow", "wolf", "bear"]
PLACES = ["barn", "field", "forest", "river", "garden", "yard", "village", "meadow", "road", "hill"]


def sentences(count: int = 240) -> list[str]:
    """Return distinct sentences, in which each animal stands `count / 12` times."""
    return [
        f"The {ANIMALS[i % 12]} went to the {PLACES[(i // 12) % 10]} on day number {i} of our long walk."
        for i in range(count)
    ]


def write_sentences(path: Path, count: int = 240) -> Path:
    """Write `sentences` to a file, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(sentences(count)) + "\n")
    return path


def prepare_small(
    directory: Path,
    sources: list[Any],
    *,
    corpus: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    tasks: dict[str, Any] | None = None,
    tokenizer_source: str | None = None,
    max_length: int = 32,
    executor: Executor | None = None,
    splits: tuple[Split, ...] = SPLITS,
) -> Manifest:
    """Prepare a corpus with settings for small ones: 2-way, 2-shot, 3 queries, 600 word pieces."""
    return prepare(
        directory,
        CorpusConfig(sources=[str(each) if isinstance(each, Path) else each for each in sources], **(corpus or {})),
        TokenizerConfig(**{"vocab_size": 600, **(tokenizer or {})}),
        TasksConfig(**{"n_way": 2, "k_shot": 2, "query_per_class": 3, "min_sentences": 5, **(tasks or {})}),
        tokenizer_source=tokenizer_source,
        max_length=max_length,
        executor=executor or LocalExecutor(),
        splits=splits,
    )


def segments(directory: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """Return all rows of the segments, in order."""
    return [row for path, _ in manifest.text_parts(directory) for row in pq.read_table(path).to_pylist()]


def examples(directory: Path, manifest: Manifest, splits: tuple[Split, ...] = SPLITS) -> list[dict[str, Any]]:
    """Return all rows of the class-complete shards."""
    parts = [path for split in splits for path in manifest.class_parts(directory, split)]
    return [row for path in parts for row in pq.read_table(path).to_pylist()]
