"""A source that cannot be read whole is refused with what it is, its name decides nothing, and all losses are told."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from distmeta.corpus.config import SourceConfig
from distmeta.corpus.manifest import Manifest
from distmeta.corpus.records import RecordSettings
from distmeta.corpus.sources import resolve_sources
from distmeta.errors import UserError
from tests.preparing import prepare_small, sentences, write_sentences
from tests.test_corpus_kinds import archive
from tests.test_corpus_sources import LABELLED, read


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("b.jsonl.lz4", "no reader knows the ending .lz4; it seems to be lz4: unpack it"),
        ("b.zip", "no reader knows the ending .zip; it seems to be a zip archive"),
        ("b.text", "no reader knows the ending .text: give its format"),
        ("b", "its name has no ending: give its format"),
        ("b.gz", "its name has no ending (it is gzip, which is read): give its format"),
        ("b.log.gz", "no reader knows the ending .log (it is gzip, which is read): give its format"),
        ("b.txt.zip", "a zip archive"),
        ("b.md", "no reader knows the ending .md"),
    ],
)
def test_a_half_of_a_folder_that_is_not_read_is_refused(tmp_path: Path, name: str, told: str) -> None:
    write_sentences(tmp_path / "in/a.txt")
    contents = {".lz4": b"\x04\x22\x4d\x18" + bytes(50), ".zip": archive("zip"), ".gz": gzip.compress(b"some text")}
    (tmp_path / "in" / name).write_bytes(contents.get(Path(name).suffix, b"some text\n"))
    with pytest.raises(UserError, match="1 of 2 sources cannot be read whole") as refused:
        prepare_small(tmp_path / "out", [tmp_path / "in"])
    assert f"{tmp_path}/in/{name}: " in str(refused.value)
    assert told in str(refused.value)
    manifest = prepare_small(tmp_path / "out", [tmp_path / "in"], corpus={"accept_losses": True})
    assert manifest.describe().splitlines()[-1].startswith(f"lost: {tmp_path}/in/{name}: ")


def test_a_source_of_nothing_but_what_is_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(archive("zip"))
    with pytest.raises(UserError, match=r"a\.zip: no file was found .*it seems to be a zip archive"):
        read(tmp_path / "a.zip")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.bak").write_text("text")
    with pytest.raises(UserError, match=r"in: no file was found .*; skipped as no data: 1 x backup"):
        read(tmp_path / "in")


def test_an_archive_that_is_compressed_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(archive("tar")))
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(archive("tar"))[:15])
    with pytest.raises(UserError, match=r"no reader knows the ending \.tar; it seems to be a tar archive: unpack it"):
        read(tmp_path / "a.tar.gz")
    with pytest.raises(UserError, match=r"no reader knows the ending \.tar"):
        read(tmp_path / "cut.tar.gz")


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    write_sentences(tmp_path / "in/a.txt")
    (tmp_path / "in/b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"in/b\.txt: .*no file"):
        prepare_small(tmp_path / "out", [tmp_path / "in"])


def test_settings_of_a_source_that_say_nothing_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "a.txt").write_text("a\n")
    for key, value, name in (
        ("encoding", "cp1252", "a.parquet"),
        ("columns", ["text"], "a.jsonl"),
        ("split", "test", "a.jsonl"),
        ("config", "en", "a.jsonl"),
        ("text_column", "body", "a.txt"),
    ):
        with pytest.raises(UserError, match=rf"`{key}` says nothing"):
            read({"path": str(tmp_path / name), key: value})
    with pytest.raises(UserError, match="`text_column` says nothing"):
        resolve_sources([SourceConfig(path="builtin:python-docs", text_column="text")])
    [docstrings] = resolve_sources([SourceConfig(path="builtin:python-docstrings", text_column="text")]).files
    assert docstrings.text_column == "text"


def labelled(folder: Path) -> Path:
    """Write rows of six classes; those of `vanishing` cannot be read, for a reason each."""
    rows = [{"text": sentence, "label": f"class {n % 5}"} for n, sentence in enumerate(sentences(100))]
    lines = [json.dumps(row) for row in rows]
    lines[9:9] = [
        '{"text": "not the end, "label": "vanishing"}',
        '{"text": ["a list"], "label": "vanishing"}',
        '{"text": "\\ud800", "label": "vanishing"}',
        '{"text": "caf\\xe9", "label": "vanishing"}',
        '{"text": null, "label": "vanishing"}',
        '{"text": "", "label": "class 1"}',
    ]
    folder.mkdir()
    path = folder / "a.jsonl"
    path.write_bytes("\n".join(lines).replace("\\xe9", "\xe9").encode("latin-1"))
    return path


def test_losses_are_refused_before_anything_changes_and_named_where_they_are_accepted(tmp_path: Path) -> None:
    shape = {"tasks": {"label_column": "label", "split_ratio": [1.0, 0.0, 0.0]}, "splits": ()}
    path = labelled(tmp_path / "in")
    before = prepare_small(tmp_path / "out", [write_sentences(tmp_path / "b.txt")])
    with pytest.raises(UserError) as refused:
        prepare_small(tmp_path / "out", [path], **shape)
    told = str(refused.value).splitlines()
    assert told[0] == "corpus.sources: its source cannot be read whole, and the corpus was not made:"
    assert told[1].startswith(f"  {path}: is not UTF-8; it seems to be ")
    assert "4 of 106 rows lost (1 not_json, line 10: Expecting ',' delimiter at character 25; 1 not_text, " in told[1]
    assert "line 11: 'text' is a list; " in told[1]
    assert told[2].endswith('"vanishing"')
    assert told[-1].endswith("corpus.accept_losses: true")
    assert Manifest.load(tmp_path / "out") == before
    manifest = prepare_small(tmp_path / "out", [path], corpus={"accept_losses": True}, **shape)
    assert (manifest.rows.read, manifest.rows.kept) == (106, 100)
    assert manifest.datasets[0].classes_vanished == ["vanishing"]
    last = manifest.describe().splitlines()[-2:]
    assert last == manifest.losses()
    assert last[0].startswith(f"lost: {path}: is not UTF-8")
    assert "vanishing" in last[1]
    assert manifest.sources[0].places["missing_text"] == ["line 14: 'text' is null"]
    assert manifest.sources[0].places["empty"] == ["line 15"]


def test_ordinary_cleaning_refuses_nothing_and_says_where_it_was(tmp_path: Path) -> None:
    rows = [f'"{sentence}",class {n % 5}' for n, sentence in enumerate(sentences(100))]
    rows[3:3] = ["text,label", '"",class 1', "no label,", f"{'x' * 2000},class 2", rows[0]]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]))
    manifest = prepare_small(
        tmp_path / "out",
        [tmp_path / "a.csv"],
        corpus={"max_record_bytes": 1000},
        tasks={"label_column": "label"},
        splits=(),
    )
    assert manifest.losses() == []
    dropped = {"header_again": 1, "empty": 1, "missing_label": 1, "too_long": 1, "repeat": 1}
    assert manifest.rows.dropped == dict(sorted(dropped.items()))
    assert manifest.sources[0].places == {
        "header_again": ["line 5"],
        "empty": ["line 6"],
        "missing_label": ["line 7: 'label' is empty"],
        "too_long": ["line 8: longer than corpus.max_record_bytes, 1000"],
    }
    assert "1 missing_label, the first in a.csv line 7" in manifest.describe()


def test_places_say_what_stood_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\na,b,c\nalone\n"open,x\ngood,y\n')
    _, tally = read(tmp_path / "a.csv", LABELLED)
    assert tally.places == {
        "wrong_number_of_fields": ["line 2: 3 fields, 2 wanted, in 'a,b,c'", "line 3: 1 fields, 2 wanted, in 'alone'"],
        "stray_quote": ["line 4: unexpected end of data"],
    }
    rows: list[Any] = [{"text": {"a": 1}, "label": "x"}, {"text": 1}, {"label": "x"}, 7, {"text": "a", "label": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"text": "b", "label": NaN}\n')
    _, tally = read(tmp_path / "a.jsonl", LABELLED)
    assert tally.places == {
        "not_text": ["line 1: 'text' is an object"],
        "missing_label": ["line 2: no 'label'", "line 5: 'label' is null", "line 6: 'label' is NaN"],
        "missing_text": ["line 3: no 'text'"],
        "not_an_object": ["line 4: a string or a number"],
    }
    (tmp_path / "b.csv").write_text("text;label\na;b\n")
    assert "set apart by ';'" in read(tmp_path / "b.csv", LABELLED)[1].problems[0]
    (tmp_path / "b.csv").write_text("text,label,text\na,b,c\n")
    assert read(tmp_path / "b.csv", LABELLED)[1].problems == ["has column 'text' 2 times"]


def test_two_stray_quotes_do_not_swallow_the_rows_between_them(tmp_path: Path) -> None:
    rows = [f"row number {n},class {n % 3}" for n in range(30)]
    for header, lines in (("text,label", rows), ("label,text", [",".join(row.split(",")[::-1]) for row in rows])):
        for first, last in ((12, 20), (12, 13), (12, 29)):
            own = list(lines)
            if header == "text,label":
                own[first], own[last] = f'"{own[first]}', own[last].replace(",", '",')
            else:
                own[first], own[last] = own[first].replace(",", ',"'), f'{own[last]}"'
            (tmp_path / "a.csv").write_text("\n".join([header, *own]) + "\n")
            records, tally = read(tmp_path / "a.csv", LABELLED)
            assert (len(records), tally.dropped) == (29, {"stray_quote": 1})
    (tmp_path / "a.csv").write_text('text,label\n"Roses are red, they say\nviolets",poem\n')
    records, tally = read(tmp_path / "a.csv", LABELLED)
    assert [record.text for record in records] == ["Roses are red, they say\nviolets"]
    assert "1 rows stand over several lines" in tally.notes[0]


def test_paragraphs_say_which_of_their_lines_was_bad(tmp_path: Path) -> None:
    settings = RecordSettings("paragraph", "NFC", True, 1000, "text", None, None)
    (tmp_path / "a.txt").write_bytes(b"good\n\none\ntwo\nbad \xff\n\ngood too\n")
    assert read(tmp_path / "a.txt", settings)[1].places == {"invalid_utf8": ["line 3: line 5: byte 0xff after 'bad '"]}


@pytest.mark.parametrize(("ending", "encoding"), [("csv", "cp1252"), ("jsonl", "cp1252"), ("csv", "euc_jp")])
def test_classes_of_lines_in_another_encoding_are_told_by_their_names(
    tmp_path: Path, ending: str, encoding: str
) -> None:
    names = ["été", "forêt", "musée"] if encoding == "cp1252" else ["学校", "図書館", "公園"]
    sea = "la mer était très agitée ce soir-là" if encoding == "cp1252" else "昨日は海がとても荒れていました"

    def lines(labels: list[str]) -> str:
        rows = [(f"{sea} {number}", labels[number % len(labels)]) for number in range(60)]
        if ending == "csv":
            return "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
        return "".join(json.dumps({"text": t, "label": each}, ensure_ascii=False) + "\n" for t, each in rows)

    (tmp_path / f"a.{ending}").write_text(lines([*names[:2], "b", "c", "d", "e"]))
    (tmp_path / f"b.{ending}").write_bytes(lines(names[1:]).encode(encoding))
    sources = [tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"]
    options = {"label_column": "label", "k_shot": 1, "query_per_class": 1}
    manifest = prepare_small(tmp_path / "out", sources, corpus={"accept_losses": True}, tasks=options)
    assert manifest.datasets[0].classes_vanished == [names[2]]


def test_a_source_of_no_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match=r"not one row can be used: .*a\.jsonl\.gz: empty: it has no records"):
        prepare_small(tmp_path / "out", [tmp_path / "a.jsonl.gz"])
