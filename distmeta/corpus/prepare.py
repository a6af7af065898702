"""From sources to a prepared corpus: segments for language modelling, and class-complete shards for tasks."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from distmeta.corpus.config import CorpusConfig, TokenizerConfig
from distmeta.corpus.datasets import datasets_of
from distmeta.corpus.elsewhere import clean, spread
from distmeta.corpus.executor import Executor, Result, Unit
from distmeta.corpus.leaks import find_leaks
from distmeta.corpus.manifest import CLASS_NAMES, FILE, Manifest
from distmeta.corpus.parts import FORMAT_VERSION, Part, digest, install, remove_other_parts
from distmeta.corpus.publish import (
    add_up,
    publish_class_names,
    publish_classes,
    publish_segments,
    publish_tokenizer,
    report_dataset,
)
from distmeta.corpus.reports import RowCounts, describe_vanished, refuse_losses
from distmeta.corpus.rows import FoundDataset, find_repeated_rows, find_rows, read_rows, require_rows
from distmeta.corpus.segments import encode_segments
from distmeta.corpus.sources import total_bytes
from distmeta.corpus.tokenizer import import_tokenizer, load_source, tokenizer_identity
from distmeta.corpus.training import train_tokenizer
from distmeta.corpus.words import load_stop_words
from distmeta.errors import UserError
from distmeta.tasks.config import SPLITS, Split, TasksConfig
from distmeta.tasks.enough import require_classes
from distmeta.tasks.index import build_classes, choose_classes, read_split_files

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
    datasets = datasets_of(corpus, tasks)
    stop_words = load_stop_words(corpus.stop_words_file) if corpus.remove_stop_words else None
    split_names = read_split_files(tasks)
    executor = spread(executor, directory)
    found = find_rows(datasets, corpus, directory, executor)
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
            [[each.name, each.text_column, each.pair_column, each.label_column, each.role] for each in datasets],
        ]
    )
    input_hash = digest([config_hash, [each.identity() for each in found]])

    standing = Manifest.load_whole(directory)
    if standing is None or standing.input_hash != input_hash:
        if tokenizer_source is not None:
            load_source(tokenizer_source)  # it may be refused
        before_writing(standing, _changes(standing, config_hash, found) if standing else [])
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"corpus.directory: {directory}: no folder can be made there ({error.strerror})") from error
        if install(directory / STAGED, directory, FILE):  # made by a process that was ended just then
            standing = Manifest.load_whole(directory)
    if standing is not None and standing.input_hash == input_hash:
        if not corpus.accept_losses:
            refuse_losses(standing.sources, standing.vanished)
        require_classes(standing, tasks, splits)
        return standing

    work = directory / "work"
    keeper = _Keeper(executor)
    rows = read_rows(found, work, keeper)
    sources = [report for each in rows for report in each.report()]
    vanished = [each.vanished() for each in rows]
    if not corpus.accept_losses:
        named = zip(datasets, vanished, strict=True)
        refuse_losses(sources, [line for each, own in named for line in describe_vanished(own, each.name)])
    for each in rows:
        require_rows(each)
    repeats = find_repeated_rows(rows, work, keeper)
    shards = [each.shards(own if corpus.deduplicate else None, work) for each, own in zip(rows, repeats, strict=True)]

    choices = choose_classes(
        list(zip(datasets, shards, strict=True)),
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
        text_bytes = sum(each.bytes for each in rows)
        tokens = train_tokenizer(tokenizer, max_length, list(chain.from_iterable(shards)), text_bytes, work, keeper)
    classes = build_classes(choices, tasks, tokens, max_length, stop_words, work, keeper)
    # The language model of a labelled set never sees a text of a held-out class.
    labels = [choice.names("train") if choice.labelled else None for choice in choices]
    segments = encode_segments(list(zip(shards, labels, strict=True)), tokens, max_length, stop_words, work, keeper)

    unfinished = directory / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    all_segments = list(chain.from_iterable(segments))
    segment_parts, overlap_parts = publish_segments(all_segments, unfinished)
    class_parts = publish_classes(classes, unfinished)
    publish_class_names([(each.name, own.classes) for each, own in zip(datasets, choices, strict=True)], unfinished)
    publish_tokenizer(tokens, unfinished)
    reports = []
    for number, (each, choice) in enumerate(zip(rows, choices, strict=True)):
        dropped = _total(repeats[number], "repeats") if corpus.deduplicate else 0
        reports.append(
            report_dataset(each, choice, tasks, repeats[number], dropped, class_parts[number], vanished[number])
        )
    manifest = Manifest(
        version=FORMAT_VERSION,
        sources=sources,
        files_skipped=dict(sum((each.skipped for each in found), Counter[str]())),
        rows=RowCounts.of(report.rows for report in reports),
        sentences=_total(all_segments, "sentences"),
        windows=sum(_total(each.parts, "windows") for each in rows),
        tokens=_total(all_segments, "tokens"),
        bytes=_total(all_segments, "bytes"),
        segments=_total(all_segments, "segments"),
        repeats=sum(report.repeats for report in reports),
        texts_under_two_labels=sum(report.texts_under_two_labels for report in reports),
        cut=sum(
            _total([part for _, part in own] if choice.labelled else of_text, "cut")
            for choice, own, of_text in zip(choices, classes, segments, strict=True)
        ),
        max_length=max_length,
        unknown_tokens=_total(all_segments, "unknown"),
        stop_words_removed=None if stop_words is None else _total(all_segments, "stop_words"),
        tokenizer_hash=tokens.summary["hash"],
        tokenizer_tokens_added=tokens.summary["tokens_added"],
        config_hash=config_hash,
        content_digest=digest(
            [
                tokens.summary["hash"],
                [
                    [dataset.name, [[split, part.summary["digest"]] for split, part in own], _digests(of_text)]
                    for dataset, own, of_text in zip(datasets, classes, segments, strict=True)
                ],
            ]
        ),
        input_hash=input_hash,
        segment_parts=segment_parts,
        overlap_parts=overlap_parts,
        classes=add_up(class_parts),
        class_names=CLASS_NAMES,
        datasets=reports,
        leaks=find_leaks(datasets, classes, segments),
    )
    before_publishing(manifest)
    manifest.save(unfinished)
    unfinished.rename(directory / STAGED)  # from here on it is this one, or is made so by whoever comes next
    install(directory / STAGED, directory, FILE)
    remove_other_parts(work, [*keeper.parts, tokens])
    clean(executor, directory)
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


def _changes(standing: Manifest, config_hash: str, found: Sequence[FoundDataset]) -> list[str]:
    """Return what makes a corpus another one than that which stands there, a line each."""
    changes = []
    if standing.version != FORMAT_VERSION:  # which is in the hash of the settings, too
        changes.append(OTHER_VERSION)
    elif standing.config_hash != config_hash:
        changes.append("other settings of corpus, tokenizer or tasks, or another tokenizer or list of words")
    before = {(source.dataset, source.name): source.content_hash for source in standing.sources}
    now = {(each.dataset.name, name): content for each in found for name, _, content in each.contents()}
    for dataset, name in sorted({*before, *now}):
        key = (dataset, name)
        if before.get(key) != now.get(key):
            what = "is new" if key not in before else "is gone" if key not in now else "has changed"
            changes.append(f"the source {name}{f' of {dataset}' if dataset else ''} {what}")
    return changes or ["other files were skipped, or are read in another way"]


def _digests(parts: Sequence[Part]) -> list[str]:
    return [part.summary["digest"] for part in parts]


def _total(parts: Sequence[Part], field: str) -> int:
    return sum(part.summary[field] for part in parts)
