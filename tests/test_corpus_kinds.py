"""Compression, encoding, and what holds no text: told by the first bytes of a file, whatever it is called."""

import bz2
import gzip
import io
import json
import lzma
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from distmeta.config import load_config
from distmeta.errors import UserError
from tests.corpora import case_folder
from tests.test_corpus_sources import LABELLED, read, texts

LINES = [f"line {n} says {n * 7919 % 10007} and é, 猫" for n in range(4000)]
PLAIN = "\n".join(LINES).encode()


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, "zstd", asbytes=True)
    return packed


COMPRESSIONS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (gzip.compress, ".gz"),
    "bzip2": (bz2.compress, ".bz2"),
    "xz": (lzma.compress, ".xz"),
    "zstd": (zstd, ".zst"),
}


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_compression_is_told_by_the_first_bytes(tmp_path: Path, kind: str) -> None:
    compress, ending = COMPRESSIONS[kind]
    for name, note in ((f"a.txt{ending}", None), ("a.txt", f"it is {kind}"), ("a.txt.GZ", f"but it is {kind}")):
        (tmp_path / name).write_bytes(compress(PLAIN))
        records, tally = read(tmp_path / name)
        assert [record.text for record in records] == LINES
        assert tally.problems == []
        if note is not None and (kind, name) != ("gzip", "a.txt.GZ"):
            assert note in tally.notes[0]
    (tmp_path / f"b.txt{ending}").write_bytes(PLAIN)
    records, tally = read(tmp_path / f"b.txt{ending}")
    assert [record.text for record in records] == LINES
    assert tally.notes == [f"its name says {kind}, but it is not compressed, and was read as that"]


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_members_follow_each_other_and_a_broken_stream_is_named(tmp_path: Path, kind: str) -> None:
    compress, ending = COMPRESSIONS[kind]
    path = tmp_path / f"a.txt{ending}"
    whole = compress(PLAIN)
    path.write_bytes(compress(b"one\n") + compress(b"") + compress(b"two\nthr") + compress(b"ee"))
    assert texts(path) == ["one", "two", "three"]
    for left in (len(whole) - 1, len(whole) // 2, 30, 5, 1):
        path.write_bytes(whole[:left])
        records, tally = read(path)
        assert [record.text for record in records] == LINES[: len(records)]
        assert f"{kind} cut short" in tally.problems[0] or f"damaged {kind}" in tally.problems[0], left
    path.write_bytes(compress(b"one\ntwo\n") + b"no member at all")
    records, tally = read(path)
    assert f"damaged {kind}" in tally.problems[0]
    assert [record.text for record in records] in ([], ["one", "two"])
    if kind != "zstd":  # without its checksum nobody can tell
        path.write_bytes(whole[: len(whole) // 2] + bytes(8) + whole[len(whole) // 2 + 8 :])
        assert f"damaged {kind}" in read(path)[1].problems[0]


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_every_format_goes_through_every_compression(tmp_path: Path, kind: str) -> None:
    compress, ending = COMPRESSIONS[kind]
    rows = [{"text": line, "label": str(n % 3)} for n, line in enumerate(LINES[:50])]
    contents = {
        "jsonl": "\n".join(json.dumps(row) for row in rows),
        "ndjson": "\n".join(json.dumps(row) for row in rows),
        "json": json.dumps(rows, indent=1),
        "csv": "text,label\r\n" + "".join(f'"{row["text"]}",{row["label"]}\r\n' for row in rows),
        "tsv": "label\ttext\n" + "".join(f"{row['label']}\t{row['text']}\n" for row in rows),
    }
    for format, content in contents.items():
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
            path = tmp_path / f"a.{format}{ending}"
            path.write_bytes(compress(content.encode(encoding)))
            records, tally = read(path, LABELLED)
            assert [(r.text, r.label) for r in records] == [(row["text"], row["label"]) for row in rows]
            assert (tally.problems, tally.dropped) == ([], {})


TEXTS = {
    "cp1252": "Der Bär läuft über die Straße\nLe garçon mange une pâte très salée à l'école",
    "iso8859-2": "Zażółć gęślą jaźń, książka leży na stole\nChłopiec śpi w łóżku, a dziewczyna piecze",
    "cp1251": "Собака бежит по улице и лает\nДевочка читает книгу у окна",
    "koi8-r": "Собака бежит по улице и лает\nДевочка читает книгу у окна",
    "cp1253": "Ο σκύλος τρέχει στο δρόμο\nΤο κορίτσι διαβάζει ένα βιβλίο",
    "cp1255": "הכלב רץ ברחוב ונובח\nהילדה קוראת ספר ליד החלון",
    "cp1256": "الكلب يجري في الشارع\nالفتاة تقرأ كتابا بجانب النافذة",
    "cp874": "สุนัขวิ่งอยู่บนถนน\nเด็กหญิงอ่านหนังสืออยู่ข้างหน้าต่าง",
    "gb18030": "狗在街上跑，对着路人叫\n女孩在窗边看书，男孩在睡觉",
    "big5": "狗在街上跑，對著路人叫\n女孩在窗邊看書，男孩在睡覺",
    "cp932": "犬が通りを走って\n女の子は窓のそばで本を読んでいます",
    "euc_jp": "犬が通りを走って\n女の子は窓のそばで本を読んでいます",
    "cp949": "개가 거리를 달리며 짖습니다\n소녀는 창가에서 책을 읽고 있습니다",
    "utf-16-le": "some plain text\nin two lines",
    "utf-16-be": "สุนัขวิ่งอยู่ บนถนน\nเด็กหญิงอ่าน หนังสือ",
    "utf-32-le": "ein Bär\nund noch einer",
    "iso2022_jp": "犬が通りを走って\n女の子は本を読んでいます",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_another_encoding_is_named_and_can_be_set(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(TEXTS[encoding].encode(encoding))
    _, tally = read(tmp_path / "a.txt")
    assert encoding in tally.problems[0].lower()
    lines = TEXTS[encoding].split("\n")
    assert texts({"path": str(tmp_path / "a.txt"), "encoding": encoding}) == lines
    objects = "\n".join(json.dumps({"text": line, "label": line[:3]}, ensure_ascii=False) for line in lines)
    (tmp_path / "a.jsonl").write_bytes(objects.encode(encoding))
    (tmp_path / "a.csv").write_bytes(
        ("text,label\r\n" + "".join(f'"{line}","{line[:3]}"\r\n' for line in lines)).encode(encoding)
    )
    for name in ("a.jsonl", "a.csv"):
        records, tally = read({"path": str(tmp_path / name), "encoding": encoding}, LABELLED)
        assert [(r.text, r.label) for r in records] == [(line, line[:3]) for line in lines]
        assert "encoding" in read(tmp_path / name, LABELLED)[1].problems[0]


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-be"])
def test_a_mark_tells_the_encoding_over_what_is_set(tmp_path: Path, mark: str) -> None:
    content = PLAIN.decode()
    (tmp_path / "a.txt").write_bytes(
        (content if mark in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff" + content).encode(mark)
    )
    assert texts(tmp_path / "a.txt") == LINES
    assert texts({"path": str(tmp_path / "a.txt"), "encoding": "cp1252"}) == LINES


def test_an_encoding_that_is_set_is_held_against_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(PLAIN)
    _, tally = read({"path": str(tmp_path / "a.txt"), "encoding": "cp1252"})
    assert tally.problems == ["its encoding is set to cp1252, but it is UTF-8: leave `encoding` out"]
    (tmp_path / "few.txt").write_text("plain\n" * 50 + "un café très salé, été\n")
    _, tally = read({"path": str(tmp_path / "few.txt"), "encoding": "cp1252"})
    assert tally.problems == ["its encoding is set to cp1252, but it is UTF-8: leave `encoding` out"]
    (tmp_path / "b.txt").write_bytes("fine\nun caf\x81e\nfine again".encode("latin-1"))
    records, tally = read({"path": str(tmp_path / "b.txt"), "encoding": "cp1252"})
    assert [(r.number, r.text) for r in records] == [(1, "fine"), (3, "fine again")]
    assert tally.places == {"undecodable": ["line 2: not cp1252 after 'un caf'"]}
    (tmp_path / "c.txt").write_bytes(
        "ein Bär\n".encode("utf-16-le") + b"\x00\xd8" + "\nläuft".encode("utf-16-le") + b"x"
    )
    records, tally = read({"path": str(tmp_path / "c.txt"), "encoding": "utf-16-le"})
    assert ([r.text for r in records], tally.dropped) == (["ein Bär"], {"undecodable": 2})


@pytest.mark.parametrize("name", ["no-such", "base64", "rot13", "hex", "utf-9", ""])
def test_an_encoding_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "run.yaml").write_text(f"corpus: {{sources: [{{path: a.txt, encoding: '{name}'}}]}}")
    with pytest.raises(UserError, match=r"^corpus.sources.*encoding.*no text encoding of Python's is called"):
        load_config(tmp_path / "run.yaml", [])


def test_a_broken_line_is_never_taken_for_an_encoding_in_which_lines_end_elsewhere(tmp_path: Path) -> None:
    for name, line in {"a": b"\xff\xfe bad", "b": b"\xfe\xff\x00b", "c": b"\xff\xfe\x00\x00"}.items():
        (tmp_path / f"{name}.txt").write_bytes(b"a good line\n" * 20 + line + b"\n")
        [problem] = read(tmp_path / f"{name}.txt")[1].problems or ["none"]
        assert "utf" not in problem.replace("is not UTF-8", "")


def test_some_lines_of_another_encoding_are_told_apart_from_a_file_of_it(tmp_path: Path) -> None:
    lines = [line.encode() for line in LINES[:100]]
    lines[7] = "un café très salé".encode("cp1252")
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    _, tally = read(tmp_path / "a.txt")
    assert tally.problems[0].startswith("is UTF-8 but for some lines")
    assert tally.places["invalid_utf8"][0].startswith("line 8: byte 0xe9 after ")


def test_lines_that_end_as_on_an_old_mac_and_marks_within_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\rone,x\rtwo,y\r")
    assert [(r.text, r.label) for r in read(tmp_path / "a.csv", LABELLED)[0]] == [("one", "x"), ("two", "y")]
    for path in ("a.txt", "a.jsonl"):
        line = "one" if path == "a.txt" else '{"text": "one"}'
        (tmp_path / path).write_bytes(f"{line}\n".encode("utf-8-sig") * 2)  # of files that were put together
        assert texts(tmp_path / path) == ["one", "one"]


def sqlite_database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "made.sqlite") as connection:
        connection.execute("create table a (text)")
    connection.close()
    return (folder / "made.sqlite").read_bytes()


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a.txt", PLAIN)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            info = tarfile.TarInfo("a.txt")
            info.size = len(PLAIN)
            file.addfile(info, io.BytesIO(PLAIN))
    return buffer.getvalue()


def columns_of(write: Callable[[pa.Table, Any], None]) -> bytes:
    buffer = io.BytesIO()
    write(pa.table({"text": LINES}), buffer)
    return buffer.getvalue()


def test_what_holds_no_text_is_named_whatever_it_is_called(tmp_path: Path) -> None:
    contents = {
        "a zip archive": archive("zip"),
        "a tar archive": archive("tar"),
        "Parquet": columns_of(pq.write_table),
        "Feather": b"FEA1\0\0\0\0" + bytes(100),
        "an Arrow file": columns_of(
            lambda table, file: pa.feather.write_feather(table, file, compression="uncompressed")
        ),
        "ORC": columns_of(pa.orc.write_table),
        "an SQLite database": sqlite_database(tmp_path),
        "lz4": b"\x04\x22\x4d\x18" + bytes(range(60)),
        "a 7z archive": b"7z\xbc\xaf\x27\x1c" + bytes(50),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(50),
        "a PDF document": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n" + bytes(10),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n",
        "binary data": bytes(range(256)) * 8,
    }
    for what, content in contents.items():
        for name in ("a.txt", "a.jsonl", "a.csv", "a.txt.gz", "b.parquet"):
            if (what, name) == ("Parquet", "b.parquet"):
                continue
            (tmp_path / name).write_bytes(content)
            problem = read(tmp_path / name)[1].problems[0]
            assert f"seems to be {what}" in problem, (name, problem)
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
        assert f"seems to be {what}" in read(tmp_path / "a.txt.gz")[1].problems[0]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(gzip.compress(PLAIN)))
    assert "seems to be gzip" in read(tmp_path / "a.txt.gz")[1].problems[0]
    (tmp_path / "a.csv").write_text("<!DOCTYPE html>\n<html><body>404</body></html>")
    assert "seems to be an HTML page" in read(tmp_path / "a.csv")[1].problems[0]
    for text in ("ORCHID", "PARIS", "BZh91", "Rar!", "FEA1", "%PDF-", "PK", "Obj"):
        (tmp_path / "a.txt").write_text(f"{text} is a word\n")
        assert texts(tmp_path / "a.txt") == [f"{text} is a word"]


def test_the_public_cases_of_compression_and_encoding() -> None:
    records, tally = read(case_folder("compressed") / "a.jsonl.bz2", LABELLED)
    assert (len(records), tally.problems) == (240, [])
    path = case_folder("encodings") / "cp1252.csv"
    _, tally = read(path, LABELLED)
    assert "it seems to be cp1252" in tally.problems[0]
    records, tally = read({"path": str(path), "encoding": "cp1252"}, LABELLED)
    assert (len(records), tally.dropped, tally.problems) == (240, {}, [])
    assert "société" in {record.label for record in records}
