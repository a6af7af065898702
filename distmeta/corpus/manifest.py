"""The manifest of a prepared corpus: what is there, where it came from, and what became of every row."""

from pathlib import Path
from typing import Self

from pydantic import Field

from distmeta.corpus.alike import describe_alike, describe_like_missing
from distmeta.corpus.reports import LINES, Frozen, SourceReport, describe_vanished, losses
from distmeta.files import write_json

FILE = "manifest.json"
CLASS_NAMES = "classes/names.jsonl"


class RowCounts(Frozen):
    """What became of the records: `read` is `kept` and all of `dropped`."""

    read: int
    kept: int
    dropped: dict[str, int]
    """By reason."""


class SegmentPart(Frozen):
    """One file of segments."""

    path: str
    """Below the corpus directory."""
    rows: int
    tokens: int


class ClassParts(Frozen):
    """The class-complete shards of one split."""

    count: int
    """Classes."""
    examples: int
    parts: list[str]
    """Below the corpus directory; no class stands in two."""


class Manifest(Frozen):
    """A prepared corpus."""

    version: int
    sources: list[SourceReport]
    files_skipped: dict[str, int]
    """Files in folders and globs that are no data by their names: `hidden`, `backup`, or a name or an ending."""
    rows: RowCounts
    sentences: int
    windows: int = 0
    """How many of the sentences are windows, cut from text without sentence ends (`corpus.max_sentence_words`)."""
    tokens: int
    """In the segments, special tokens not counted."""
    bytes: int
    """Text of the rows that were kept, as UTF-8."""
    segments: int
    repeats: int
    """Rows whose text (and label) an earlier row has; dropped where `corpus.deduplicate` is on."""
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
    """Below the corpus directory: hashes of the rows of a labelled set that language modelling reads."""
    classes: dict[str, ClassParts]
    """By split: train, valid, test."""
    class_names: str | None = None
    """Below the corpus directory: the names of all classes and the split of each, a JSON object a line."""
    classes_by_ratio: list[int] = Field(default_factory=list)
    """How many classes `tasks.split_ratio` alone would give the splits, where `tasks.n_way` takes more in one."""
    classes_left_out: dict[str, int]
    """Labels with fewer different texts than a task takes, and how many they have: the largest ones."""
    classes_left_out_total: int = 0
    """How many such labels there are."""
    classes_in_no_split: int
    """Labels that stand in none of `tasks.split_files`."""
    labels_alike: list[dict[str, str]] = Field(default_factory=list)
    """Groups of class names that differ in Unicode form, case, blanks or width alone, or as 1 and 1.0: the split of
    each name."""
    labels_alike_total: int = 0
    """How many such groups there are."""
    labels_like_missing: list[str] = Field(default_factory=list)
    """Names of classes that programs also write for a missing label, such as NaN."""
    words_left_out: dict[str, int] = Field(default_factory=dict)
    """SMLMT: stretches of text that are no classes since nothing tells where words end in them, by script."""
    classes_vanished: list[str] = Field(default_factory=list)
    """Labels of dropped rows, as far as they can be told, that no row is left of."""

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

    def class_parts(self, directory: Path, split: str) -> list[Path]:
        """Return the class-complete shards of a split, in order."""
        return [directory / part for part in self.classes[split].parts]

    def text_parts(self, directory: Path) -> list[tuple[Path, int]]:
        """Return the files of segments, in order, each with its number of rows."""
        return [(directory / part.path, part.rows) for part in self.segment_parts]

    def language_modelling_texts(self, directory: Path) -> list[Path]:
        """Return the files of hashes of what language modelling reads of a labelled set."""
        return [directory / part for part in self.overlap_parts]

    def describe(self) -> str:
        """Return what a user wants to know of it, in a few lines. What was lost stands last, by file."""
        classes = ", ".join(f"{parts.count} meta-{split}" for split, parts in self.classes.items())
        lines = [
            f"corpus: {self.rows.kept} of {self.rows.read} rows kept (dropped: {self._dropped() or 'none'}), "
            f"{self.sentences} sentences, {self.tokens} tokens",
            f"classes: {classes}" + (f" (named in {self.class_names})" if self.class_names else ""),
        ]
        if self.classes_by_ratio:
            train, valid, test = self.classes_by_ratio
            lines.append(
                f"tasks.split_ratio alone gives {train}, {valid} and {test} classes: some were moved to where there "
                "are fewer than tasks.n_way, so that another n_way makes other splits"
            )
        if self.repeats or self.texts_under_two_labels:
            lines.append(f"{self.repeats} repeated rows, {self.texts_under_two_labels} texts under two labels")
        if self.windows:
            lines.append(
                f"{self.windows} of the sentences are windows of longer text in which no sentence ends "
                "(corpus.max_sentence_words)"
            )
        if self.cut:
            lines.append(f"{self.cut} rows have a sentence longer than {self.max_length} tokens, which was cut")
        if self.classes_left_out:
            names = ", ".join(f"{name} ({count})" for name, count in list(self.classes_left_out.items())[:5])
            lines.append(f"{self.classes_left_out_total} classes are too small for a task and left out: {names}")
        if self.classes_in_no_split:
            lines.append(f"{self.classes_in_no_split} classes stand in no split file and are left out")
        lines += describe_alike(self.labels_alike, self.labels_alike_total)
        lines += describe_like_missing(self.labels_like_missing)
        lines += self.describe_left_out()
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

    def describe_left_out(self) -> list[str]:
        """Return a line about the text that can give no classes; none where all can."""
        if not self.words_left_out:
            return []
        told = ", ".join(f"{count} of {script}" for script, count in self.words_left_out.items())
        return [f"words that no dictionary here can tell from their neighbours are no classes: {told}"]

    def losses(self) -> list[str]:
        """Return what was lost, a line a file, and the classes that have vanished."""
        return [*(f"lost: {line}" for line in losses(self.sources)), *describe_vanished(self.classes_vanished)]

    def _dropped(self) -> str:
        """The dropped rows by reason, and where the first of each stands."""
        first: dict[str, str] = {}
        for source in self.sources:
            for reason, places in source.places.items():
                first.setdefault(reason, f", the first in {source.name} {places[0].partition(':')[0]}")
        counts = sorted(self.rows.dropped.items())
        return "; ".join(f"{count} {reason}{first.get(reason, '')}" for reason, count in counts)
