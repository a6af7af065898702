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
            dataset = datasets.load_dataset(path, config, split=split)
            return _as_written(path, config, split, dataset) if dataset.info.builder_name == "csv" else dataset
        saved = datasets.load_from_disk(path)
    except Exception as error:  # the library raises many kinds; all of them mean that the name is not good
        told = f"{error} {error.__cause__ or ''}".split()
        raise UserError(f"corpus.sources: Hugging Face dataset {path}: {' '.join(told)}") from error
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise UserError(f"corpus.sources: {path} has no split {split!r}; it has {', '.join(map(repr, saved))}")
    return saved[split]


def _as_written(path: str, config: str | None, split: str, dataset: "Dataset") -> "Dataset":
    """Return a dataset of CSV files with their fields as they are written.

    By itself the library takes 007 for a number, and NA, None and null for nothing.
    """
    import datasets

    string = datasets.Value("string")
    features = datasets.Features(
        {name: string if isinstance(each, datasets.Value) else each for name, each in dataset.features.items()}
    )
    return datasets.load_dataset(path, config, split=split, features=features, keep_default_na=False)


def class_names(dataset: "Dataset", column: str) -> Sequence[str] | None:
    """Return the names behind a column of class numbers; None for any other column."""
    import datasets

    feature = dataset.features[column]
    return feature.names if isinstance(feature, datasets.ClassLabel) else None
