"""Hugging Face datasets, by name or from a folder of `save_to_disk`."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from distmeta.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def is_saved_dataset(path: str) -> bool:
    """Whether a folder was written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    folder = Path(path)
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


@lru_cache(maxsize=4)
def load_dataset(path: str, config: str | None, split: str) -> "Dataset":
    """Return one split of a dataset, memory-mapped. Raises UserError where there is none."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if not is_saved_dataset(path):
            return datasets.load_dataset(path, config, split=split)
        saved = datasets.load_from_disk(path)
    except Exception as error:  # the library raises many kinds; all of them mean that the name is not good
        raise UserError(f"corpus.sources: Hugging Face dataset {path}: {error}") from error
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise UserError(f"corpus.sources: {path} has no split {split!r}; it has {', '.join(map(repr, saved))}")
    return saved[split]


def class_names(dataset: "Dataset", column: str) -> Sequence[str] | None:
    """Return the names behind a column of class numbers; None for any other column."""
    import datasets

    feature = dataset.features[column]
    return feature.names if isinstance(feature, datasets.ClassLabel) else None
