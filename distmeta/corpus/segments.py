"""Hierarchical encoding: documents as segments of whole sentences that still know where they belong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distmeta.corpus.encoder import load_encoder
from distmeta.corpus.executor import Executor, map_groups
from distmeta.corpus.parts import Part, file_digest, load_list, make_part, save_list, write_parquet
from distmeta.corpus.shards import Shard
from distmeta.corpus.words import StopWords, overlap_keys

STEP = "segments"
TABLE = "segments.parquet"
TEXTS = "texts.parquet"


class Segment(NamedTuple):
    """Neighbouring sentences of one document, or a piece of one that is too long."""

    sentence: int
    """Number in the document of the sentence that the first token belongs to."""
    token_start: int
    """Position in the document of the first token."""
    sentence_offsets: list[int]
    """Where sentences begin in this segment; 0 is absent where the segment goes on with a sentence begun before."""
    input_ids: list[int]


def cut_document(sentences: Sequence[list[int]], room: int) -> Iterator[Segment]:
    """Yield a document, given as token ids by sentence, in segments of at most `room` tokens, filled greedily."""
    first, token_start, offsets, held = 0, 0, list[int](), list[int]()
    for number, ids in enumerate(sentences):
        if held and len(held) + len(ids) > room:
            yield Segment(first, token_start, offsets, held)
            token_start, offsets, held = token_start + len(held), [], []
        if not ids:
            continue
        if not held:
            first = number
        offsets.append(len(held))
        held = held + ids
        for start in range(0, len(held) - room, room):
            yield Segment(first, token_start, offsets, held[start : start + room])
            token_start, offsets = token_start + room, []
        held = held[-((len(held) - 1) % room + 1) :]
    if held:
        yield Segment(first, token_start, offsets, held)


@dataclass(frozen=True, slots=True)
class SegmentsUnit:
    """One shard to encode."""

    shard: Shard
    tokenizer: Path
    tokenizer_hash: str
    max_length: int
    stop_words: str | None
    labels: str | None
    keeps_hashes: bool

    def identity(self) -> list[object]:
        """What determines the result."""
        settings = [self.tokenizer_hash, self.max_length, self.stop_words, self.labels, self.keeps_hashes]
        return [self.shard.identity(), *settings]


def encode_segments(
    datasets: Sequence[tuple[Sequence[Shard], Sequence[str] | None]],
    tokenizer: Part,
    max_length: int,
    stop_words: frozenset[str] | None,
    work: Path,
    executor: Executor,
) -> list[list[Part]]:
    """Encode every shard of each data set for language modelling, in order; of a labelled set, which has a list of
    labels beside it, only the rows under those.

    A part holds `segments.parquet`: `document`, `segment`, and the fields of `Segment`; where any set is labelled also
    `texts.parquet`, the `overlap_keys` of what is encoded: of a labelled set its rows, of text its sentences and
    records. Its summary counts over all
    records `records`, `sentences` and `bytes`, and over what is encoded `segments`, `tokens`, how many of them are
    `unknown`, `stop_words` taken out, and `cut`, the records with a sentence of more than `max_length` tokens, special
    tokens included.
    """
    lists = work / "lists"
    stop_list = None if stop_words is None else save_list(lists, sorted(stop_words))
    keeps_hashes = any(labels is not None for _, labels in datasets)
    groups = []
    for shards, labels in datasets:
        label_list = None if labels is None else save_list(lists, sorted(labels))
        settings = (tokenizer.folder, tokenizer.summary["hash"], max_length, stop_list, label_list, keeps_hashes)
        groups.append([SegmentsUnit(shard, *settings) for shard in shards])
    return map_groups(executor, _encode_unit, groups, "corpus: encoding")


def _encode_unit(unit: SegmentsUnit) -> Part:
    return make_part(unit.shard.work / STEP, unit.identity(), lambda folder: _write_segments(unit, folder))


def _write_segments(unit: SegmentsUnit, folder: Path) -> dict[str, Any]:
    lists = unit.shard.work / "lists"
    encoder = load_encoder(unit.tokenizer)
    room = unit.max_length - encoder.special_tokens
    records = unit.shard.read()
    texts = records["sentences"].combine_chunks()
    summary = {
        "records": len(records),
        "sentences": len(texts.flatten()),
        "bytes": pc.sum(pc.binary_length(texts.flatten())).as_py() or 0,
    }
    if unit.labels is not None:
        records = records.filter(pc.is_in(records["label"], pa.array(load_list(lists, unit.labels), pa.string())))
        texts = records["sentences"].combine_chunks()
    if unit.keeps_hashes:
        read = texts.to_pylist()
        write_parquet(pa.table(overlap_keys(read if unit.labels is not None else _texts_in(read))), folder / TEXTS)
    sentences = texts.flatten().to_pylist()
    stop_words = StopWords([] if unit.stop_words is None else load_list(lists, unit.stop_words))
    if unit.stop_words is not None:
        sentences = list(map(stop_words.remove, sentences))
    encoded = encoder.encode(sentences)

    ends = np.cumsum(texts.value_lengths().to_numpy(zero_copy_only=False))
    rows: list[tuple[str, int, Segment]] = []
    start = cut = 0
    for document, end in zip(records["document"].to_pylist(), ends.tolist(), strict=True):
        cut += any(len(ids) > room for ids in encoded[start:end])
        rows += ((document, number, each) for number, each in enumerate(cut_document(encoded[start:end], room)))
        start = end
    write_parquet(_table(rows), folder / TABLE)
    tokens = sum(len(segment.input_ids) for _, _, segment in rows)
    return summary | {
        "segments": len(rows),
        "tokens": tokens,
        "unknown": sum(_count(segment.input_ids, encoder.unknown_id) for _, _, segment in rows),
        "stop_words": stop_words.removed,
        "cut": cut,
        "digest": file_digest(folder / TABLE),
    }


def _texts_in(records: Sequence[list[str]]) -> Iterator[tuple[str]]:
    """Yield each sentence of text without labels, and each record of several: a labelled text may be either."""
    for sentences in records:
        yield from ((sentence,) for sentence in sentences)
        if len(sentences) > 1:
            yield (" ".join(sentences),)


def _count(ids: list[int], wanted: int | None) -> int:
    return 0 if wanted is None else ids.count(wanted)


def _table(rows: Sequence[tuple[str, int, Segment]]) -> pa.Table:
    return pa.table(
        {
            "document": pa.array([document for document, _, _ in rows], pa.string()),
            "segment": pa.array([number for _, number, _ in rows], pa.int32()),
            "sentence": pa.array([segment.sentence for _, _, segment in rows], pa.int32()),
            "token_start": pa.array([segment.token_start for _, _, segment in rows], pa.int64()),
            "sentence_offsets": int_lists([segment.sentence_offsets for _, _, segment in rows]),
            "input_ids": int_lists([segment.input_ids for _, _, segment in rows]),
        }
    )


def int_lists(lists: Sequence[list[int]]) -> pa.Array:
    """Return lists of numbers as an Arrow list<int32> array."""
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(each) for each in lists], out=offsets[1:])
    values = np.fromiter(chain.from_iterable(lists), np.int32, int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
