"""JSON in the layouts that people have: an object a line, in a list, in a list within an object, pretty or not."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distmeta.corpus.json_rows import is_by_lines, read_json_values
from distmeta.corpus.records import Record, RecordSettings, Tally
from tests.corpora import case_folder
from tests.test_corpus_sources import UNLABELLED, read

LABELLED = RecordSettings("line", "NFC", True, 10_000, "text", None, "label")
ROWS = [{"text": f'text {n} with "quotes", [brackets] and {{braces}}', "label": f"{n % 3}"} for n in range(30)]
EXPECTED = [(row["text"], row["label"]) for row in ROWS]


def dumps(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


LAYOUTS = {
    "lines": "\n".join(map(dumps, ROWS)),
    "a list in one line": dumps(ROWS),
    "a list without blanks": dumps(ROWS, separators=(",", ":")),
    "a pretty list": dumps(ROWS, indent=2),
    "a list, pretty by tabs": dumps(ROWS, indent="\t"),
    "a list, an object a line": "[\n" + ",\n".join(map(dumps, ROWS)) + "\n]\n",
    "a list, commas first": "[" + "\n,".join(map(dumps, ROWS)) + "]",
    "a list, brackets on the lines of objects": "[" + ",\n ".join(map(dumps, ROWS)) + "]",
    "pretty objects": "\n".join(dumps(row, indent=4) for row in ROWS),
    "objects in one line": " ".join(map(dumps, ROWS)),
    "a list in an object": dumps({"data": ROWS}),
    "a pretty list in an object": dumps({"n": 3, "info": {"a": [1]}, "data": ROWS, "end": [1, 2]}, indent=2),
    "two lists": dumps(ROWS[:10]) + "\n" + dumps(ROWS[10:], indent=1),
    "blank lines and a mark": "\ufeff\n\n  " + dumps(ROWS, indent=2) + "\n\n\n",
    "one object": dumps(ROWS[0], indent=2),
    "one object in a list": dumps(ROWS[:1]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(tmp_path: Path, layout: str) -> None:
    (tmp_path / "a.json").write_text(LAYOUTS[layout])
    records, tally = read(tmp_path / "a.json", LABELLED)
    expected = EXPECTED[:1] if layout.startswith("one object") else EXPECTED
    assert [(record.text, record.label) for record in records] == expected
    assert [record.number for record in records] == list(range(1, len(expected) + 1))
    assert (tally.dropped, tally.problems) == ({}, [])


def test_lines_stay_lines(tmp_path: Path) -> None:
    nested = [row | {"spans": [{"from": 1}], "more": {"text": "no"}} for row in ROWS]
    lines = list(map(dumps, nested))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert [(r.text, r.label) for r in read(tmp_path / "a.jsonl", LABELLED)[0]] == EXPECTED
    assert is_by_lines(lines[0].encode(), "text")
    for broken in ("[" + lines[0][1:], lines[0][:20], "", "null", "{", "["):
        (tmp_path / "a.jsonl").write_text("\n".join([broken, *lines[1:]]) + "\n")
        records, tally = read(tmp_path / "a.jsonl", LABELLED)
        assert ([(r.text, r.label) for r in records], tally.read) == (EXPECTED[1:], 30), broken
        assert tally.problems == []


@pytest.mark.parametrize("layout", ["a pretty list", "a list, an object a line", "pretty objects", "one line"])
@pytest.mark.parametrize("number", [0, 7, 29])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"label"', 'label"'),
        lambda text: text.replace('"label":', '"label"'),
        lambda text: text.replace('"label"', '"lab'),
        lambda text: text.replace("}", "", 1) if "\n" not in text else text.rpartition("}")[0],
        lambda text: text + "}",
        lambda text: text.replace("{", "", 1),
        lambda text: "[1]",
        lambda text: '"no object"',
        lambda text: text.replace("quotes", "quo\x01tes"),
    ],
)
def test_a_broken_object_is_one_loss_and_its_neighbours_are_kept(
    tmp_path: Path, layout: str, number: int, damage: Any
) -> None:
    rows = [{"text": f"text {n}, quotes", "label": f"{n % 3}"} for n in range(30)]
    if layout == "a pretty list":
        pieces, before, between, after = [dumps([row], indent=2)[2:-2] for row in rows], "[\n", ",\n", "\n]"
    elif layout == "a list, an object a line":
        pieces, before, between, after = list(map(dumps, rows)), "[\n", ",\n", "\n]"
    elif layout == "pretty objects":
        pieces, before, between, after = [dumps(row, indent=4) for row in rows], "", "\n", "\n"
    else:
        pieces, before, between, after = list(map(dumps, rows)), "[", ", ", "]"
    pieces[number] = damage(pieces[number])
    (tmp_path / "a.json").write_text(before + between.join(pieces) + after)
    records, tally = read(tmp_path / "a.json", LABELLED)
    kept = [(row["text"], row["label"]) for row in rows if row is not rows[number]]
    assert [(record.text, record.label) for record in records] == kept
    assert (tally.read, sum(tally.dropped.values())) == (30, 1)


def test_a_list_that_is_cut_short_is_named(tmp_path: Path) -> None:
    whole = dumps(ROWS, indent=2)
    for end in range(len(whole) // 2, len(whole) - 1, 37):
        (tmp_path / "a.json").write_text(whole[:end])
        records, tally = read(tmp_path / "a.json", LABELLED)
        assert "its list does not end" in tally.problems[0]
        assert [(record.text, record.label) for record in records] == EXPECTED[: len(records)]
        assert tally.read == len(records) + sum(tally.dropped.values())


def test_what_is_no_list_of_rows_is_named(tmp_path: Path) -> None:
    columns = {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]}
    for name, content, told in (
        ("two", {"train": ROWS, "test": ROWS}, "another list of objects than 'train'"),
        ("columns", columns, "'text' is a list"),
        ("frame", {"text": {"0": "a"}, "label": {"0": "b"}}, "'text' is an object"),
        ("others", [{"content": "a"}], "no column 'text', 'label'; its columns are 'content'"),
        ("texts", ["a", "b"], "a string"),
        ("tables", [["text", "label"], ["a", "b"]], "a list"),
    ):
        for indent in (None, 2):
            (tmp_path / f"{name}.json").write_text(dumps(content, indent=indent))
            records, tally = read(tmp_path / f"{name}.json", LABELLED)
            places = [place for each in tally.places.values() for place in each]
            assert any(told in each for each in [*tally.problems, *places]), (name, tally)
            assert not records or name == "two"


def test_a_list_is_never_held() -> None:
    """Neither a long one nor an object that does not end."""
    row = '{"text": "%s", "label": "x"}, ' % ("a text of some length " * 20)

    def chunks() -> Iterator[str]:
        yield "["
        for _ in range(50):
            yield row * 100
        yield '{"text": "'
        for _ in range(100):
            yield "x" * 100_000

    tally = Tally()
    settings = UNLABELLED
    tracemalloc.start()
    kept = sum(isinstance(each, Record) for each in read_json_values(chunks(), settings, tally))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept == 5_000
    assert peak < 1_000_000  # of 12 MB
    assert "its list does not end" in tally.problems[0]


def test_the_public_case_of_a_list() -> None:
    folder = case_folder("json_array")
    pretty, lines = (read(folder / name, LABELLED)[0] for name in ("pretty.json", "tiny.jsonl"))
    assert [(r.text, r.label) for r in pretty] == [(r.text, r.label) for r in lines]
    assert len(pretty) == 240


def test_a_list_in_another_encoding_is_told_by_the_most_common_that_reads_the_same(tmp_path: Path) -> None:
    rows = [{"text": f"le numéro {number}", "label": "abc"[number % 3]} for number in range(30)]
    (tmp_path / "a.json").write_bytes(dumps(rows, indent=1).encode("cp1252"))
    records, tally = read(tmp_path / "a.json", LABELLED)
    assert (records, tally.dropped) == ([], {"invalid_utf8": 30})
    assert "encoding: cp1252}" in tally.problems[0]
    assert tally.places["invalid_utf8"][0] == "row 1: a byte that is not text"
