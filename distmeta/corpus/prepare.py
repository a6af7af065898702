"""From sources to a prepared corpus: segments for language modelling, and class-complete shards for tasks."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

from distmeta.corpus.alike import find_like_missing
from distmeta.corpus.config import BUILTIN, CorpusConfig, TokenizerConfig
from distmeta.corpus.executor import Executor, Result, Unit
from distmeta.corpus.ingest import STEP as RECORDS
from distmeta.corpus.ingest import HashedPiece, hash_sources, in_canonical_order, ingest
from distmeta.corpus.manifest import CLASS_NAMES, FILE, ClassParts, Manifest, RowCounts, SegmentPart
from distmeta.corpus.parts import FORMAT_VERSION, SUMMARY, Part, digest, install, publish, remove_other_parts, save_list
from distmeta.corpus.records import LOSSES, RecordSettings, Tally
from distmeta.corpus.repeats import find_repeats
from distmeta.corpus.reports import SourceReport, refuse_losses, report_source, vanished_classes
from distmeta.corpus.segments import TABLE as SEGMENTS_TABLE
from distmeta.corpus.segments import TEXTS, encode_segments
from distmeta.corpus.shards import Shard
from distmeta.corpus.sources import resolve_sources, total_bytes
from distmeta.corpus.tokenizer import import_tokenizer, load_source, tokenizer_identity
from distmeta.corpus.training import train_tokenizer
from distmeta.corpus.words import load_stop_words
from distmeta.errors import UserError
from distmeta.files import write_text
from distmeta.tasks.config import SPLITS, Split, TasksConfig
from distmeta.tasks.index import build_classes, choose_classes, read_split_files, require_classes, split_counts
from distmeta.tasks.index_draw import TABLE as CLASSES_TABLE

__all__ = ["prepare", "total_bytes"]

OTHER_VERSION = "it was prepared by another version of distmeta"
"""A change of a corpus that is none of its sources and settings."""

UNFINISHED, STAGED = "unfinished", "staged"
"""Folders in which a corpus is put together, and from which it takes its place."""


def prepare(
    directory: Path,
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    tasks: TasksConfig,
    *,
    tokenizer_source: str | None,
    max_length: int,
    executor: Executor,
    splits: Sequence[Split] = SPLITS,
    before_writing: Callable[[Manifest | None, list[str]], None] = lambda standing, changes: None,
    before_publishing: Callable[[Manifest], None] = lambda manifest: None,
) -> Manifest:
    """Prepare a corpus in `directory`, as far as it is not yet, and return its manifest.

    What is there stays, whole, until what takes its place is whole.

    Args:
        directory: where `manifest.json`, `tokenizer/`, `segments/` and `classes/` go, and `work/`, which makes the next
            time quicker and may be removed.
        tokenizer_source: folder or hub name of the tokenizer to load; None: one is trained as `tokenizer` says.
        max_length: longest sequence, special tokens included (tokens).
        executor: where the work is done. The result does not depend on it.
        splits: the splits that must have enough classes for a task. Where one has not, all is prepared nevertheless.
        before_writing: called before anything is written, unless the corpus is finished, with the manifest of the
            corpus that would be replaced, if any, and what has changed since that was made. It may refuse.
        before_publishing: called with the manifest of what was made, before it takes its place. It may refuse.

    Raises:
        UserError: a source that cannot be read, or not whole (`records.LOSSES`) without `corpus.accept_losses`, a
            tokenizer that is not fast, a directory that cannot be written, classes that are not in the data, or too
            few of them.
    """
    settings = RecordSettings(
        record=corpus.record,
        normalize=corpus.normalize,
        split_sentences=corpus.split_sentences,
        max_sentence_words=corpus.max_sentence_words,
        max_record_bytes=corpus.max_record_bytes,
        text_column=tasks.text_column,
        pair_column=tasks.text_pair_column if tasks.label_column is not None else None,
        label_column=tasks.label_column,
    )
    stop_words = load_stop_words(corpus.stop_words_file) if corpus.remove_stop_words else None
    split_names = read_split_files(tasks)
    resolved = resolve_sources(corpus, directory)
    hashed = in_canonical_order(hash_sources(resolved.files, settings, executor))
    config_hash = digest(
        [
            FORMAT_VERSION,
            corpus.model_dump(exclude={"sources", "accept_losses", "stop_words_file", "executor", "directory"}),
            sorted(stop_words or ()),
            tokenizer.model_dump(exclude={"name_or_path", "max_length"}) if tokenizer_source is None else None,
            tokenizer_source and tokenizer_identity(tokenizer_source),
            max_length,
            tasks.of_corpus(),
            split_names,
        ]
    )
    input_hash = digest([config_hash, resolved.skipped, [[each.piece.identity(), each.content] for each in hashed]])

    standing = Manifest.load_whole(directory)
    if standing is None or standing.input_hash != input_hash:
        if tokenizer_source is not None:
            load_source(tokenizer_source)  # it may be refused
        before_writing(standing, _changes(standing, config_hash, hashed) if standing else [])
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"corpus.directory: {directory}: no folder can be made there ({error.strerror})") from error
        if install(directory / STAGED, directory, FILE):  # made by a process that was ended just then
            standing = Manifest.load_whole(directory)
    if standing is not None and standing.input_hash == input_hash:
        if not corpus.accept_losses:
            refuse_losses(standing.sources, standing.classes_vanished)
        require_classes(standing, tasks, splits)
        return standing

    work = directory / "work"
    keeper = _Keeper(executor)
    ingested = ingest(hashed, settings, work, keeper)
    tallies = [Tally(**piece) for part in ingested for piece in part.summary["pieces"]]
    sources = _source_reports(hashed, tallies)
    vanished = _vanished(tallies, ingested)
    if not corpus.accept_losses:
        refuse_losses(sources, vanished)
    _require_rows(sources)
    repeats = _find_repeated_rows(ingested, work, keeper)
    shards = _shards(ingested, repeats if corpus.deduplicate else None, work)

    choice = choose_classes(
        shards,
        tasks,
        split_names,
        min_words=corpus.min_sentence_words,
        stop_words=stop_words,
        work=work,
        executor=keeper,
    )

    if tokenizer_source is not None:
        tokens = import_tokenizer(tokenizer_source, max_length, work)
    else:
        text_bytes = sum(shard["bytes"] for part in ingested for shard in part.summary["shards"])
        tokens = train_tokenizer(tokenizer, max_length, shards, text_bytes, work, keeper)
    classes = build_classes(choice, tasks, tokens, max_length, stop_words, work, keeper)
    # The language model of a labelled set never sees a text of a held-out class.
    labels = choice.names("train") if tasks.label_column is not None else None
    segments = encode_segments(shards, tokens, max_length, stop_words, labels, work, keeper)

    unfinished = directory / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    segment_parts, overlap_parts = _publish_segments(segments, labels is not None, unfinished)
    class_parts = _publish_classes(classes, unfinished)
    names = [json.dumps({"split": each.split, "class": each.name}, ensure_ascii=False) for each in choice.classes]
    write_text(unfinished / CLASS_NAMES, "".join(f"{name}\n" for name in names))
    by_ratio = split_counts(len(choice.classes), tasks.split_ratio, n_way=0) if split_names is None else []
    _publish_tokenizer(tokens, unfinished)
    repeated = sum(part.summary["repeats"] for part in repeats)
    made = [*segments, *(part for _, part in classes)]
    manifest = Manifest(
        version=FORMAT_VERSION,
        sources=sources,
        files_skipped=dict(resolved.skipped),
        rows=_row_counts(tallies, repeated if corpus.deduplicate else 0),
        sentences=_total(segments, "sentences"),
        windows=_total(ingested, "windows"),
        tokens=_total(segments, "tokens"),
        bytes=_total(segments, "bytes"),
        segments=_total(segments, "segments"),
        repeats=repeated,
        texts_under_two_labels=_total(repeats, "under_two_labels"),
        cut=_total(segments, "cut") if labels is None else _total([part for _, part in classes], "cut"),
        max_length=max_length,
        unknown_tokens=_total(segments, "unknown"),
        stop_words_removed=None if stop_words is None else _total(segments, "stop_words"),
        tokenizer_hash=tokens.summary["hash"],
        tokenizer_tokens_added=tokens.summary["tokens_added"],
        config_hash=config_hash,
        content_digest=digest([tokens.summary["hash"], [part.summary["digest"] for part in made]]),
        input_hash=input_hash,
        segment_parts=segment_parts,
        overlap_parts=overlap_parts,
        classes=class_parts,
        class_names=CLASS_NAMES,
        classes_by_ratio=by_ratio if by_ratio != [each.count for each in class_parts.values()] else [],
        classes_left_out=choice.too_small,
        classes_left_out_total=choice.too_small_total,
        classes_in_no_split=choice.in_no_split,
        words_left_out=choice.left_out,
        labels_alike=choice.alike,
        labels_alike_total=choice.alike_total,
        labels_like_missing=[] if labels is None else find_like_missing([each.name for each in choice.classes]),
        classes_vanished=vanished,
    )
    before_publishing(manifest)
    manifest.save(unfinished)
    unfinished.rename(directory / STAGED)  # from here on it is this one, or is made so by whoever comes next
    install(directory / STAGED, directory, FILE)
    remove_other_parts(work, [*keeper.parts, tokens])
    require_classes(manifest, tasks, splits)
    return manifest


class _Keeper:
    """An executor that remembers the parts it has returned, so that all others can be removed."""

    def __init__(self, executor: Executor) -> None:
        self.parts: list[Part] = []
        self._executor = executor

    def map(self, function: Callable[[Unit], Result], units: Sequence[Unit], description: str) -> Iterator[Result]:
        for result in self._executor.map(function, units, description):
            if isinstance(result, Part):
                self.parts.append(result)
            yield result


def _changes(standing: Manifest, config_hash: str, hashed: Sequence[HashedPiece]) -> list[str]:
    """Return what makes a corpus another one than that which stands there, a line each."""
    changes = []
    if standing.version != FORMAT_VERSION:  # which is in the hash of the settings, too
        changes.append(OTHER_VERSION)
    elif standing.config_hash != config_hash:
        changes.append("other settings of corpus, tokenizer or tasks, or another tokenizer or list of words")
    before = {source.name: source.content_hash for source in standing.sources}
    now = {name: content for name, _, content in _contents(hashed)}
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            what = "is new" if name not in before else "is gone" if name not in now else "has changed"
            changes.append(f"the source {name} {what}")
    return changes or ["other files were skipped, or are read in another way"]


def _contents(hashed: Sequence[HashedPiece]) -> Iterator[tuple[str, list[HashedPiece], str]]:
    """Yield each source's name, its pieces, and a hash of its content."""
    for name, group in groupby(hashed, key=lambda each: each.piece.name):
        pieces = list(group)
        contents = [each.content for each in pieces]
        yield name, pieces, contents[0] if len(contents) == 1 else digest(contents)


def _require_rows(sources: Sequence[SourceReport]) -> None:
    if any(source.records > sum(source.dropped.values()) for source in sources):
        return
    told = [line for source in sources if (line := source.loss()) is not None]
    told += [f"{source.path}: {note}" for source in sources for note in source.notes]
    told += [
        f"{source.path}: {count} rows dropped: {reason} ({source.places[reason][0]})"
        for source in sources
        for reason, count in source.dropped.items()
        if reason not in LOSSES
    ]
    more = f"; and {len(told) - 10} more" if len(told) > 10 else ""
    raise UserError("corpus.sources: not one row can be used: " + "; ".join(told[:10]) + more)


def _vanished(tallies: Sequence[Tally], ingested: Sequence[Part]) -> list[str]:
    labels = {label for tally in tallies for label in tally.dropped_labels}
    shards = (
        part.folder / f"{number:05d}.parquet" for part in ingested for number in range(len(part.summary["shards"]))
    )
    return vanished_classes(labels, shards)


def _find_repeated_rows(ingested: Sequence[Part], work: Path, executor: Executor) -> list[Part]:
    tables = [part.folder / f"{number:05d}.keys" for part in ingested for number in range(len(part.summary["shards"]))]
    rows = sum(shard["records"] for part in ingested for shard in part.summary["shards"])
    return find_repeats(work / "repeats", tables, rows, executor, "corpus: comparing rows")


def _shards(ingested: Sequence[Part], repeats: Sequence[Part] | None, work: Path) -> list[Shard]:
    listing = None if repeats is None else save_list(work / "lists", [f"repeats/{part.key}" for part in repeats])
    files = [
        f"{RECORDS}/{part.key}/{number:05d}.parquet"
        for part in ingested
        for number in range(len(part.summary["shards"]))
    ]
    return [Shard(work, number, file, listing) for number, file in enumerate(files)]


def _publish_segments(segments: Sequence[Part], labelled: bool, directory: Path) -> tuple[list[SegmentPart], list[str]]:
    """Return what the manifest says of the segments, and where the hashes of a labelled set's texts are."""
    filled = [part for part in segments if part.summary["segments"]]
    names = [f"part-{number:05d}.parquet" for number in range(len(filled))]
    files = [part.folder / SEGMENTS_TABLE for part in filled]
    hashes = [part.folder / TEXTS for part in segments if labelled]
    hash_names = [f"texts-{number:05d}.parquet" for number in range(len(hashes))]
    publish([*files, *hashes], directory / "segments", [*names, *hash_names])
    segment_parts = [
        SegmentPart(path=f"segments/{name}", rows=part.summary["segments"], tokens=part.summary["tokens"])
        for name, part in zip(names, filled, strict=True)
    ]
    return segment_parts, [f"segments/{name}" for name in hash_names]


def _publish_classes(classes: Sequence[tuple[Split, Part]], directory: Path) -> dict[str, ClassParts]:
    numbers = Counter[Split]()
    names = []
    for split, _ in classes:
        names.append(f"{split}-{numbers[split]:05d}.parquet")
        numbers[split] += 1
    publish([part.folder / CLASSES_TABLE for _, part in classes], directory / "classes", names)
    result: dict[str, ClassParts] = {}
    for split in SPLITS:
        own = [(name, part) for name, (of, part) in zip(names, classes, strict=True) if of == split]
        parts = [part for _, part in own]
        result[split] = ClassParts(
            count=_total(parts, "classes"),
            examples=_total(parts, "examples"),
            parts=[f"classes/{name}" for name, _ in own],
        )
    return result


def _publish_tokenizer(tokenizer: Part, directory: Path) -> None:
    files = sorted(file for file in tokenizer.folder.iterdir() if file.name != SUMMARY)
    publish(files, directory / "tokenizer", [file.name for file in files])


def _source_reports(hashed: Sequence[HashedPiece], tallies: Sequence[Tally]) -> list[SourceReport]:
    reports, left = [], iter(tallies)
    for name, pieces, content in _contents(hashed):
        first, own = pieces[0].piece, list(islice(left, len(pieces)))
        reports.append(report_source(name, first.path or BUILTIN, first.size, content, own))
    return reports


def _row_counts(tallies: Sequence[Tally], repeats: int) -> RowCounts:
    dropped = Counter[str]({"repeat": repeats} if repeats else {})
    for tally in tallies:
        dropped.update(tally.dropped)
    kept = sum(tally.kept for tally in tallies) - repeats
    return RowCounts(read=sum(tally.read for tally in tallies), kept=kept, dropped=dict(sorted(dropped.items())))


def _total(parts: Sequence[Part], field: str) -> int:
    return sum(part.summary[field] for part in parts)
