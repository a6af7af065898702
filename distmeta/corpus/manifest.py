"""The manifest of a prepared corpus: what is there, where it came from, and what became of every row."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from distmeta.corpus.dataset_report import ClassParts, DatasetReport, Leak
from distmeta.corpus.reports import LINES, Frozen, RowCounts, SourceReport, losses
from distmeta.files import write_json

FILE = "manifest.json"
CLASS_NAMES = "classes/names.jsonl"


class SegmentPart(Frozen):
    """One file of segments."""

    path: str
    """Below the corpus directory."""
    rows: int
    tokens: int


class Manifest(Frozen):
    """A prepared corpus."""

    version: int
    sources: list[SourceReport]
    files_skipped: dict[str, int]
    """Files in folders and globs that are no data by their names: `hidden`, `backup`, or a name or an ending."""
    rows: RowCounts
    """Of all data sets, as are all further numbers."""
    sentences: int
    windows: int = 0
    """How many of the sentences are windows, cut from text without sentence ends (`corpus.max_sentence_words`)."""
    tokens: int
    """In the segments, special tokens not counted."""
    bytes: int
    """Text of the rows that were kept, as UTF-8."""
    segments: int
    repeats: int
    """Rows whose text (and label) an earlier row of their data set has; dropped where `corpus.deduplicate` is on."""
    texts_under_two_labels: int
    """Texts, compared without case and white space, that stand under more than one label."""
    cut: int
    """Rows with a text (a sentence, where they are split) longer than `max_length`, which was cut."""
    max_length: int
    unknown_tokens: int = 0
    """How many of the tokens stand for text that the tokenizer cannot spell."""
    stop_words_removed: int | None = None
    """Taken out of the text; null where none are asked for."""
    tokenizer_hash: str
    tokenizer_tokens_added: int
    """Special tokens (padding, mask) that the loaded tokenizer did not have."""
    config_hash: str
    """Names the settings that the corpus depends on."""
    content_digest: str
    """Names what was made: the same for the same content and settings, wherever and by whatever it was made, and in
    whatever order the sources were given."""
    input_hash: str
    """Names settings and content of the sources: while it stays the same there is nothing to do."""
    segment_parts: list[SegmentPart]
    overlap_parts: list[str] = Field(default_factory=list)
    """Below the corpus directory: where any set is labelled, hashes of the texts that language modelling reads."""
    classes: dict[str, ClassParts]
    """By split, of all data sets."""
    class_names: str | None = None
    """Below the corpus directory: the names of all classes, the split of each and, where it has a name, its data set,
    a JSON object a line."""
    datasets: list[DatasetReport]
    """By name."""
    leaks: list[Leak] = Field(default_factory=list)
    """Texts that are held out in one data set and trained on in another."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_dataset(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Read what was written before a corpus had several data sets: a run may have begun with it."""
        if "datasets" in values:
            return values
        own = {name: value for name, value in values.items() if name in DatasetReport.model_fields}
        total = {name: value for name, value in values.items() if name in cls.model_fields}
        report = {"name": "", "labelled": bool(values.get("overlap_parts"))} | own
        return total | {"datasets": [report]}

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Return the manifest of a corpus directory. Raises FileNotFoundError where none is finished."""
        return cls.model_validate_json((directory / FILE).read_bytes())

    @classmethod
    def load_whole(cls, directory: Path) -> Self | None:
        """Return the manifest where it can be read and all that it names is there, else None."""
        try:
            manifest = cls.load(directory)
        except (OSError, ValueError):
            return None
        parts = [part.path for part in manifest.segment_parts]
        parts += [*manifest.overlap_parts, *(path for each in manifest.classes.values() for path in each.parts)]
        parts += [manifest.class_names] if manifest.class_names else []
        is_whole = all((directory / path).is_file() for path in [*parts, "tokenizer/tokenizer.json"])
        return manifest if is_whole else None

    def save(self, directory: Path) -> None:
        """Write the manifest, whole or not at all."""
        write_json(directory / FILE, self.model_dump(), indent=1)

    @property
    def vanished(self) -> list[str]:
        """A line on the classes of each data set of which no row is left."""
        return [line for dataset in self.datasets for line in dataset.describe_vanished()]

    def dataset(self, name: str) -> DatasetReport:
        """Return the data set of that name. Raises KeyError where there is none."""
        return {dataset.name: dataset for dataset in self.datasets}[name]

    def class_parts(self, directory: Path, split: str, dataset: str | None = None) -> list[Path]:
        """Return the class-complete shards of a split, in order: of one data set, or of all."""
        classes = (self if dataset is None else self.dataset(dataset)).classes
        return [directory / part for part in classes[split].parts]

    def text_parts(self, directory: Path) -> list[tuple[Path, int]]:
        """Return the files of segments, in order, each with its number of rows."""
        return [(directory / part.path, part.rows) for part in self.segment_parts]

    def language_modelling_texts(self, directory: Path) -> list[Path]:
        """Return the files of hashes of what language modelling reads, where any data set is labelled."""
        return [directory / part for part in self.overlap_parts]

    def figures(self) -> dict[str, Any]:
        """Return what it comes to, as numbers that runs can be compared by."""
        splits = {split: {"classes": parts.count, "examples": parts.examples} for split, parts in self.classes.items()}
        return {
            "content_digest": self.content_digest,
            "rows_read": self.rows.read,
            "rows_kept": self.rows.kept,
            "sentences": self.sentences,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "segments": self.segments,
            "unknown_tokens": self.unknown_tokens,
            "data_sets": len(self.datasets),
            **splits,
        }

    def describe(self) -> str:
        """Return what a user wants to know of it, in a few lines. What was lost stands last, by file."""
        classes = ", ".join(f"{parts.count} meta-{split}" for split, parts in self.classes.items())
        lines = [
            f"corpus: {self.rows.kept} of {self.rows.read} rows kept (dropped: {self._dropped() or 'none'}), "
            f"{self.sentences} sentences, {self.tokens} tokens",
            f"classes: {classes}" + (f" (named in {self.class_names})" if self.class_names else ""),
        ]
        if len(self.datasets) > 1 or self.datasets[0].name:
            lines += [dataset.describe_rows() for dataset in self.datasets]
        if self.repeats or self.texts_under_two_labels:
            lines.append(f"{self.repeats} repeated rows, {self.texts_under_two_labels} texts under two labels")
        if self.windows:
            lines.append(
                f"{self.windows} of the sentences are windows of longer text in which no sentence ends "
                "(corpus.max_sentence_words)"
            )
        if self.cut:
            lines.append(f"{self.cut} rows have a sentence longer than {self.max_length} tokens, which was cut")
        lines += [line for dataset in self.datasets for line in dataset.describe_classes()]
        lines += [leak.describe() for leak in self.leaks]
        if self.unknown_tokens:
            share = 100 * self.unknown_tokens / self.tokens
            lines.append(f"{self.unknown_tokens} tokens ({share:.2g}%) stand for text that the tokenizer cannot spell")
        if self.stop_words_removed is not None:
            none = (
                "" if self.stop_words_removed else "; the built-in list is English and Chinese (corpus.stop_words_file)"
            )
            lines.append(f"{self.stop_words_removed} stop words were taken out{none}")
        if any(reason != "repeat" for reason in self.rows.dropped):
            lines.append("where dropped rows stand: `distmeta prepare --show-dropped`, or `sources` in manifest.json")
        if self.files_skipped:
            skipped = ", ".join(f"{count} {what}" for what, count in sorted(self.files_skipped.items()))
            lines.append(f"skipped as no data: {skipped}")
        notes = [f"{source.path}: {note}" for source in self.sources for note in source.notes]
        lines += notes if len(notes) <= LINES else [*notes[:LINES], f"and {len(notes) - LINES} more such notes"]
        return "\n".join([*lines, *self.losses()])

    def losses(self) -> list[str]:
        """Return what was lost, a line a file, and the classes that have vanished."""
        return [*(f"lost: {line}" for line in losses(self.sources)), *self.vanished]

    def _dropped(self) -> str:
        """The dropped rows by reason, and where the first of each stands."""
        first: dict[str, str] = {}
        for source in self.sources:
            for reason, places in source.places.items():
                file = f"{source.name} of {source.dataset}" if source.dataset else source.name
                first.setdefault(reason, f", the first in {file} {places[0].partition(':')[0]}")
        counts = sorted(self.rows.dropped.items())
        return "; ".join(f"{count} {reason}{first.get(reason, '')}" for reason, count in counts)
