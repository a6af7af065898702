"""Every format, plain and broken: each row is kept or counted, and good files are read whatever lies beside them."""

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmeta.corpus import cut
from distmeta.corpus.config import CorpusConfig, SourceConfig
from distmeta.corpus.executor import LocalExecutor
from distmeta.corpus.ingest import hash_sources
from distmeta.corpus.pieces import UNKNOWN
from distmeta.corpus.readers import read_piece
from distmeta.corpus.records import PLACES, Dropped, Record, RecordSettings, Tally, clean_records
from distmeta.corpus.sources import resolve_sources, total_bytes
from distmeta.corpus.tabular import CsvRows
from distmeta.corpus.text_files import split_lines
from distmeta.errors import UserError

UNLABELLED = RecordSettings("line", "NFC", True, 1000, "text", None, None)
LABELLED = RecordSettings("line", "NFC", True, 1000, "text", None, "label")


def read(source: Any, settings: RecordSettings = UNLABELLED) -> tuple[list[Record], Tally]:
    """Read all of a source; return its good records and one tally for all of its files."""
    corpus = CorpusConfig(sources=[str(source) if isinstance(source, Path) else source])
    total = Tally()
    records = []
    for each in hash_sources([(resolve_sources(corpus.sources).files, settings)], LocalExecutor())[0]:
        tally = Tally()
        records += clean_records(read_piece(each.piece, settings, tally), settings, tally)
        assert tally.read == tally.kept + sum(tally.dropped.values())
        total.read += tally.read
        total.kept += tally.kept
        total.problems += tally.problems
        total.notes += tally.notes
        for reason, places in tally.places.items():
            total.places[reason] = [*total.places.get(reason, []), *places][:PLACES]
        for reason, count in tally.dropped.items():
            total.dropped[reason] = total.dropped.get(reason, 0) + count
    assert total.kept == len(records)
    return records, total


def texts(source: Any, settings: RecordSettings = UNLABELLED) -> list[str | None]:
    return [record.text for record in read(source, settings)[0]]


ROWS = [("a cat", "x"), ("ein Hund", "7"), ("一只猫", "NA")]


def write(path: Path) -> Path:
    """Write ROWS in the format that a file's name says."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.table({"text": [t for t, _ in ROWS], "label": [n for _, n in ROWS]}), path)
        return path
    lines = {
        "txt": [text for text, _ in ROWS],
        "jsonl": [json.dumps({"text": t, "label": n}) for t, n in ROWS],
        "json": [json.dumps({"text": t, "label": n}, ensure_ascii=False) for t, n in ROWS],
        "csv": ["text,label", *(f'"{t}",{n}' for t, n in ROWS)],
        "tsv": ["label\ttext", *(f"{n}\t{t}" for t, n in ROWS)],
    }[kind]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    "name", ["a.txt", "a.txt.gz", "a.jsonl", "a.json.gz", "a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz", "a.parquet"]
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert texts(tmp_path / name) == [text for text, _ in ROWS]
    if ".txt" not in name:
        records, _ = read(tmp_path / name, LABELLED)
        assert [(record.text, record.label) for record in records] == ROWS


def test_folders_globs_and_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/one.txt", "b/c/two.csv", "one.txt", "skip.md", "README.md", "b/x[1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".md"):
            (tmp_path / name).write_text("# no")
        else:
            write(tmp_path / name)

    def names(*paths: str) -> list[str]:
        files = resolve_sources(list(paths)).files
        return [file.name for file in files if file.format != UNKNOWN]

    assert names(str(tmp_path)) == ["b/c/two.csv", "b/one.txt", "b/x[1].txt", "one.txt"]
    resolved = resolve_sources([str(tmp_path)])
    assert resolved.skipped == {"README.md": 1}
    assert [file.name for file in resolved.files if file.format == UNKNOWN] == ["skip.md"]
    assert names(f"{tmp_path}/*.txt") == ["one.txt"]
    assert names(f"{tmp_path}/**/*.txt") == ["b/one.txt", "b/x[1].txt", "one.txt"]
    assert names(f"{tmp_path}/b/x[1].txt") == ["x[1].txt"]
    assert names(f"{tmp_path}/**") == names(str(tmp_path))
    assert names(f"{tmp_path}/b/[!x]*.txt", f"{tmp_path}/[a-c]/[!a-np-z]ne.*") == ["one.txt", "b/one.txt"]
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path)
        assert names("*.txt") == ["one.txt"]
    assert names(f"file://{tmp_path}/b") == ["c/two.csv", "one.txt", "x[1].txt"]
    assert names(f"file://{tmp_path}/b/*.txt", f"{tmp_path}/one.txt") == ["one.txt", "x[1].txt", "one.txt~2"]
    assert total_bytes(CorpusConfig(sources=[f"{tmp_path}/one.txt"])) == (tmp_path / "one.txt").stat().st_size
    assert texts(f"file://{tmp_path}/one.txt") == [text for text, _ in ROWS]
    bad = [f"{tmp_path}/[p-a]ne.txt", f"{tmp_path}/[one.txt", f"{tmp_path}/[]one.txt"]
    for nothing in (f"{tmp_path}/absent.txt", f"{tmp_path}/*.csv", f"{tmp_path}/skip.md", *bad):
        with pytest.raises(UserError, match=r"corpus\.sources: .*(absent|csv|skip|\[)"):
            names(nothing)
    assert names(*[str(tmp_path / "one.txt")] * 2) == ["one.txt", "one.txt~2"]


@pytest.mark.parametrize("address", ["hf://datasets/x", "nothing://bucket/x"])
def test_an_address_that_leads_nowhere_is_told(address: str) -> None:
    """Whatever the library behind it makes of that."""
    with pytest.raises(UserError, match=f"^corpus.sources: {address}: cannot be reached: ") as refusal:
        resolve_sources([address])
    assert "\n" not in str(refusal.value)


def test_hidden_files_and_backups_are_none_whatever_format_is_given(tmp_path: Path) -> None:
    hidden = ["._b.txt", ".ipynb_checkpoints/b.txt", "c/.d/e.txt", ".x.md", ".b.txt.swp"]
    backups = ["b.txt~", "b.txt.bak", "#b.txt#", "c/b.swp", "~$b.txt", "b.orig", "b.txt.~1~", "B.TXT.BAK", "b.txt.save"]
    for name in ["b.txt", *hidden, *backups]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    for path in (str(tmp_path), f"{tmp_path}/**/*"):
        for format in ("auto", "text"):
            source = SourceConfig(path=path, format=format)
            resolved = resolve_sources([source])
            assert [file.name for file in resolved.files] == ["b.txt"]
            assert resolved.skipped == {"hidden": len(hidden), "backup": len(backups)}
    assert texts(tmp_path / "._b.txt") == ["text"]  # asked for by name
    assert texts({"path": str(tmp_path / "b.txt~"), "format": "text"}) == ["text"]


def test_a_second_text_of_white_space_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "b": " \\n\u3000"}\n{"text": "a", "b": " b "}\n')
    settings = RecordSettings("line", "NFC", True, 1000, "text", "b", None)
    records, tally = read(tmp_path / "a.jsonl", settings)
    assert ([record.pair for record in records], tally.dropped) == (["b"], {"missing_pair": 1})


def test_a_format_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "sms").write_text('ham\tit said "hi\nspam\tbuy\n')
    source = {"path": str(tmp_path / "sms"), "format": "tsv", "columns": ["label", "text"]}
    records, _ = read(source, LABELLED)
    assert [(r.number, r.label, r.text) for r in records] == [(1, "ham", 'it said "hi'), (2, "spam", "buy")]


def test_broken_lines_are_counted_and_their_neighbours_kept(tmp_path: Path) -> None:
    lines = [b"good one", b"bad \xff byte", b"nul \0 byte", b"x" * 2000, b"   ", "e\u0301t\u00e9".encode(), b"last"]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    records, tally = read(tmp_path / "a.txt")
    assert [(r.number, r.text) for r in records] == [(1, "good one"), (6, "été"), (7, "last")]
    assert tally.dropped == {"invalid_utf8": 1, "nul_byte": 1, "too_long": 1, "empty": 1}


def test_a_long_line_is_never_held() -> None:
    held = []

    def chunks():
        for _ in range(300):
            chunk = bytearray(b"x" * 100_000)
            held.append(chunk)
            yield bytes(chunk)
            held.clear()
        yield b"\nshort\n"

    tracemalloc.start()
    assert list(split_lines(chunks(), 1000)) == [None, b"short"]
    assert tracemalloc.get_traced_memory()[1] < 2_000_000  # of 30 MB
    tracemalloc.stop()


@given(st.lists(st.binary(max_size=8)), st.integers(1, 5))
def test_lines_do_not_depend_on_chunks(pieces: list[bytes], size: int) -> None:
    content = b"".join(piece + b"\n" for piece in pieces)
    chunks = iter([content[start : start + size] for start in range(0, len(content), size)])
    assert list(split_lines(chunks, 100)) == [line.removesuffix(b"\r") for line in content.split(b"\n")[:-1]]


def test_paragraphs(tmp_path: Path) -> None:
    settings = RecordSettings("paragraph", "NFC", True, 100, "text", None, None)
    (tmp_path / "a.txt").write_bytes(b"\n\none\r\ntwo\r\n \t\r\nbad \xff\nstill bad\n\n" + b"word \n" * 40 + b"\nend")
    records, tally = read(tmp_path / "a.txt", settings)
    assert [(r.number, r.text) for r in records] == [(3, "one\ntwo"), (50, "end")]
    assert tally.dropped == {"invalid_utf8": 1, "too_long": 1}


def test_a_truncated_gzip_keeps_what_came_before(tmp_path: Path) -> None:
    lines = [f"line number {i} {i * 7919 % 10007}" for i in range(20_000)]
    whole = gzip.compress("\n".join(lines).encode())
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    records, tally = read(tmp_path / "a.txt.gz")
    assert len(records) > 5000
    assert [r.text for r in records] == lines[: len(records)]
    assert tally.dropped in ({}, {"truncated": 1})
    assert tally.problems == [f"gzip cut short after line {len(records)}"]


def test_members_of_a_gzip_follow_each_other_and_a_false_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n") + b"\0" * 16)
    assert texts(tmp_path / "a.txt.gz") == ["one", "two"]
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one\n") + b"no member")
    records, tally = read(tmp_path / "b.txt.gz")
    assert [record.text for record in records] == ["one"]
    assert "damaged gzip" in tally.problems[0]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.tsv", "a.txt.gz"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    _, tally = read(tmp_path / name)
    assert (tally.notes, tally.problems) == (["empty: it has no records"], [])


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_a_file_without_the_column_is_refused_with_its_columns(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    settings = RecordSettings("line", "NFC", True, 1000, "text", None, "class")
    _, tally = read(tmp_path / name, settings)
    assert tally.kept == 0
    assert "no column 'class'; its columns are" in tally.problems[0]
    assert "'text'" in tally.problems[0]
    assert read(write(tmp_path / "a.txt"), settings)[1].problems[0].startswith("plain text has no column 'class'; ")


def test_parquet_that_is_none_and_columns_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is not parquet")
    assert "cannot be read" in read(tmp_path / "a.parquet")[1].problems[0]
    pq.write_table(pa.table({"text": [["a"], ["b"]]}), tmp_path / "b.parquet")
    assert "holds list" in read(tmp_path / "b.parquet")[1].problems[0]
    table = pa.table({"text": ["a", "b", None, "d"], "label": pa.array([7, None, 8, 9])})
    pq.write_table(table, tmp_path / "c.parquet")
    records, tally = read(tmp_path / "c.parquet", LABELLED)
    assert [(r.text, r.label) for r in records] == [("a", "7"), ("d", "9")]
    assert tally.dropped == {"missing_label": 1, "missing_text": 1}


def test_json_lines_that_are_none(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "label": 7}',
        '{"text": "b", "label": "7"}',
        '{"text": "c", "label": 1e3}',
        '{"text": "d", "label": true}',
        '{"text": "e", "label": null}',
        '{"text": "f"}',
        '{"label": "7"}',
        '{"text": ["g"], "label": "7"}',
        '{"text": "\\ud800", "label": "7"}',
        '{"text": "h\\u0000", "label": "7"}',
        '["text"]',
        "{broken",
        "[" * 100_000,
        "",
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    settings = RecordSettings("line", "NFC", True, 1_000_000, "text", None, "label")
    records, tally = read(tmp_path / "a.jsonl", settings)
    assert [(r.text, r.label) for r in records] == [("a", "7"), ("b", "7"), ("c", "1e3"), ("d", "true")]
    assert tally.dropped == {
        "missing_label": 2,
        "missing_text": 1,
        "not_text": 1,
        "invalid_utf8": 1,
        "nul_byte": 1,
        "not_an_object": 1,
        "not_json": 2,
        "empty": 1,
    }


def test_a_csv_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    """Case D4."""
    rows = [f'"line one {i}\r\nline two, with comma",alpha\r\n' for i in range(20)]
    rows += [f'"she {i} said ""no""",beta\r\n' for i in range(20)]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + ("text,label\r\n" + "".join(rows)).encode())
    records, tally = read(tmp_path / "a.csv", LABELLED)
    assert (tally.read, tally.kept, tally.problems) == (40, 40, [])
    assert {record.label for record in records} == {"alpha", "beta"}
    assert sum("\n" in (record.text or "") for record in records) == 20
    assert sum('"' in (record.text or "") for record in records) == 20
    assert not any("\r" in f"{record.text}{record.label}" for record in records)


@pytest.mark.parametrize(
    ("body", "kept", "dropped"),
    [
        ('"open,alpha\ngood one,beta\ngood two,beta\n', ["good one", "good two"], {"stray_quote": 1}),
        ('"open,alpha\ngood one,beta\n"quoted",beta\n', ["good one", "quoted"], {"stray_quote": 1}),
        ('good one,beta\n"half" open,alpha\ngood two,beta\n', ["good one", "good two"], {"stray_quote": 1}),
        ('5" pipe,beta\ngood,beta\n', ['5" pipe', "good"], {}),
        ("a,b,c\ngood,beta\nalone\n\n", ["good"], {"wrong_number_of_fields": 2, "empty": 1}),
        (
            '"two\nlines",beta\n"open,x\nbad \udcff,x\ngood,y\n',
            ["two\nlines", "good"],
            {"stray_quote": 1, "invalid_utf8": 1},
        ),
        ("good,\n,beta\nx,beta\n", ["x"], {"missing_label": 1, "empty": 1}),
    ],
)
def test_a_stray_quote_swallows_nothing(tmp_path: Path, body: str, kept: list[str], dropped: dict[str, int]) -> None:
    (tmp_path / "a.csv").write_bytes(("text,label\n" + body).encode(errors="surrogateescape"))
    records, tally = read(tmp_path / "a.csv", LABELLED)
    assert [record.text for record in records] == kept
    assert tally.dropped == dropped


FIELDS = st.text(st.sampled_from('ab,"\n é'), max_size=6)


@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=8))
def test_csv_that_is_correct_is_read_as_written(rows: list[tuple[str, str]]) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    lines = iter(enumerate(stream.getvalue().removesuffix("\n").split("\n") if rows else [], 1))
    assert [row[1] for row in CsvRows(lines, UNLABELLED, 2).rows()] == [list(row) for row in rows]


@given(st.lists(st.text(st.sampled_from('ab,"'), max_size=8), min_size=1, max_size=8))
def test_every_line_of_any_csv_is_in_a_row_or_dropped(lines: list[str]) -> None:
    def letters(texts: list[str]) -> str:
        return "".join(each for text in texts for each in text if each in "ab")

    rows = list(CsvRows(iter(enumerate(lines, 1)), UNLABELLED, 2).rows())
    starts = [row.number if isinstance(row, Dropped) else row[0] for row in rows]
    assert starts[0] == 1
    for row, start, following in zip(rows, starts, [*starts[1:], len(lines) + 1], strict=True):
        span = lines[start - 1 : following - 1]
        if isinstance(row, Dropped):
            assert len(span) == 1
        else:
            assert letters(row[1]) == letters(span)
            assert len(span) == 1 or len(row[1]) == 2


def test_labels_are_text_byte_for_byte(tmp_path: Path) -> None:
    """Case F3."""
    labels = ["007", "7", "NA", "None", "null", "true", "1e3"]
    rows = [(f"text {i} of {label}", label) for label in labels for i in range(8)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows))
    for name in ("a.csv", "a.jsonl"):
        assert [(r.text, r.label) for r in read(tmp_path / name, LABELLED)[0]] == rows


def test_big_files_are_read_in_pieces_as_if_they_were_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"text of line {i} {'猫' * (i % 5)}" if i % 7 else "" for i in range(3000)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line or "x"}) + "\n" for line in lines))
    table = pa.table({"text": [line or None for line in lines]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100, compression="none")
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        for record in ("line", "paragraph"):
            settings = RecordSettings(record, "NFC", True, 1000, "text", None, None)
            whole = read(tmp_path / name, settings)
            with monkeypatch.context() as patch:
                patch.setattr(cut, "PIECE_BYTES", 5000)
                files = resolve_sources([str(tmp_path / name)]).files
                assert len(hash_sources([(files, settings)], LocalExecutor())[0]) > 5
                assert read(tmp_path / name, settings) == whole


def test_hugging_face_datasets_by_name_and_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": ["a", "b", None], "label": [0, 1, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    records, tally = read(tmp_path / "saved", LABELLED)
    assert [(r.number, r.text, r.label) for r in records] == [(1, "a", "no"), (2, "b", "yes")]
    assert tally.dropped == {"missing_text": 1}
    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": ["t"]})}).save_to_disk(tmp_path / "splits")
    assert texts({"path": str(tmp_path / "splits"), "split": "test"}) == ["t"]
    with pytest.raises(UserError, match="no split 'train'"):
        texts(tmp_path / "splits")
    (tmp_path / "plain").mkdir()
    write(tmp_path / "plain" / "train.jsonl")
    assert texts(f"huggingface:{tmp_path / 'plain'}") == [text for text, _ in ROWS]


def test_the_embedded_corpus_is_prose() -> None:
    records, tally = read("builtin:python-docs", RecordSettings("line", "NFC", True, 100_000, "text", None, None))
    assert tally.kept == 79
    whole = "\n".join(record.text or "" for record in records)
    assert len(whole) > 300_000
    assert not any(markup in whole for markup in ("****", "====", ">>> ", "::="))
