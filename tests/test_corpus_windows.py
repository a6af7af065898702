"""Text without sentence ends is cut into windows, and said."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmeta.corpus.boundaries import find_words
from distmeta.corpus.windows import cut_into_windows
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
