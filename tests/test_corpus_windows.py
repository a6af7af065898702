"""Text without sentence ends is cut into windows, and said."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distmeta.corpus.boundaries import find_words
from distmeta.corpus.text_files import Part, split_lines
from distmeta.corpus.windows import cut_into_windows
from distmeta.errors import UserError
from tests.preparing import examples, prepare_small, segments, sentences


@given(st.text(st.sampled_from("aB '\u200b猫のก็ \n-“।\u0301"), max_size=80), st.integers(1, 5))
def test_windows_hold_all_of_a_text_and_no_more_words_than_asked(text: str, most: int) -> None:
    text = text.strip()
    windows = cut_into_windows(text, most)
    assert "".join("".join(windows).split()) == "".join(text.split())
    assert windows == [text] or all(windows)
    if text.isascii():
        assert [name for window in windows for name in find_words(window)[0]] == find_words(text)[0]
        sizes = [len(find_words(window)[0]) for window in windows]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= most


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("one two three four five six", ["one two three", "four five six"]),
        ('one two three "four, five" six', ["one two three", '"four, five" six']),
        ("猫狗马，羊鸡鸭", ["猫狗马，", "羊鸡鸭"]),
        ("ฉันรักแมวและสุนัขมาก", ["ฉันรักแมว", "และสุนัขมาก"]),
    ],
)
def test_windows_are_cut_between_words(text: str, windows: list[str]) -> None:
    assert cut_into_windows(text, 3) == windows


def test_a_corpus_in_one_line_without_punctuation_gives_classes_and_is_said_to_be_cut(tmp_path: Path) -> None:
    words = [word for line in sentences() for word in find_words(line)[0]]
    (tmp_path / "text8.txt").write_text(" ".join(words))
    manifest = prepare_small(tmp_path / "out", [tmp_path / "text8.txt"], corpus={"max_sentence_words": 12})
    assert manifest.sentences == manifest.windows == -(-len(words) // 12)
    assert {"cat", "barn"} <= {row["class"] for row in examples(tmp_path / "out", manifest)}
    assert "are windows of longer text in which no sentence ends (corpus.max_sentence_words)" in manifest.describe()
    whole = prepare_small(
        tmp_path / "whole",
        [tmp_path / "text8.txt"],
        corpus={"split_sentences": False},
        tasks={"min_sentences": 1000, "max_sentences": 1000},
        splits=(),
    )
    assert (whole.sentences, whole.windows) == (1, 0)
    ids = [
        [each for row in segments(tmp_path / name, of) for each in row["input_ids"]]
        for name, of in (("out", manifest), ("whole", whole))
    ]
    assert ids[0] == ids[1]  # nothing is lost between windows


TEXT = st.text(st.sampled_from("ab \n\t猫क्षก็e\u0301"), max_size=60)


@given(TEXT, st.integers(8, 20), st.integers(1, 30))
@example("猫" * 20 + "\n" + "x" * 30 + "\nab", 10, 7)
def test_parts_of_a_long_line_are_whole_characters_and_all_of_it(text: str, longest: int, size: int) -> None:
    content = text.encode()
    chunks = (content[start : start + size] for start in range(0, len(content), size))
    lines: list[list[str | None]] = [[]]
    for piece in split_lines(chunks, longest, cut=True):
        assert piece is None or len(piece) <= longest
        lines[-1].append(None if piece is None else piece.decode())
        if not isinstance(piece, Part):
            lines.append([])
    for line, parts in zip(text.removesuffix("\n").split("\n"), lines, strict=False):
        if None not in parts:
            assert "".join(part or "" for part in parts) == line
            assert len(parts) <= 1 or len(line.encode()) > longest
        else:
            assert len(line.encode()) > longest


def test_only_what_has_no_place_to_cut_is_too_long() -> None:
    lines = [("猫" * 9).encode(), b"x" * 30, b"a " * 9 + b"x" * 30, b"end"]
    found = list(split_lines(iter([b"\n".join(lines)]), 10, cut=True))
    assert found.count(None) == 2
    assert b"".join(filter(None, found)) == ("猫" * 9).encode() + b"a " * 9 + b"end"


def test_a_line_longer_than_a_record_is_read_in_parts_and_said_to_be(tmp_path: Path) -> None:
    words = [word for line in sentences() for word in find_words(line)[0]]
    (tmp_path / "text8").write_text(" ".join(words))
    source = {"path": str(tmp_path / "text8"), "format": "text"}
    manifest = prepare_small(tmp_path / "out", [source], corpus={"max_record_bytes": 1000, "max_sentence_words": 12})
    assert manifest.rows.read == manifest.rows.kept == -(-len(" ".join(words)) // 995)
    assert "were read in" in manifest.describe()
    documents = [row["document"] for row in segments(tmp_path / "out", manifest)]
    assert list(dict.fromkeys(documents))[:2] == ["text8:1", "text8:1/1"]
    rows = [row["row"] for row in examples(tmp_path / "out", manifest) if row["class"] == "cat"]
    assert len(rows) == len(set(rows)) > 5
    with pytest.raises(UserError, match=r"longer than corpus\.max_record_bytes, 1000"):
        prepare_small(tmp_path / "whole", [source], corpus={"max_record_bytes": 1000, "split_sentences": False})


def test_one_line_of_any_length_is_read_in_little_memory() -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield b"word " * 20_000

    tracemalloc.start()
    parts = sum(1 for _ in split_lines(chunks(), 1_000_000, cut=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert parts == 30
    assert peak < 5_000_000  # of 30 MB
