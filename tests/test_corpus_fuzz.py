"""Sources broken at random, always the same ones: each row that was written is read, or is told as lost."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmeta.corpus.records import LOSSES, RecordSettings
from distmeta.corpus.reports import dropped_rows, refuse_losses, report_source
from distmeta.errors import UserError
from tests.test_corpus_sources import read

FILES = 40
SEEDS = 13
SETTINGS = RecordSettings("line", "none", True, 100_000, "text", None, "label")
PLAIN = RecordSettings("line", "none", True, 100_000, "text", None, None)
WORDS = """
    the cat, and "dog" went; home été Straße łódź собака лает σκύλος מחשב كلب สุนัข வீடு हिंदी 猫在家 犬です 한국어 🦊
    e\u0301 a\u200db
    {brace} [list] back\\slash tab 'quote' 7.0 NaN null -1 true
""".split()  # noqa: SIM905
COMPRESSIONS: list[tuple[str, Callable[[bytes], bytes]]] = [
    (".gz", gzip.compress),
    (".bz2", bz2.compress),
    (".xz", lzma.compress),
    (".zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
]

Row = tuple[str, str]


def make_rows(draw: random.Random) -> list[Row]:
    return [
        (" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) + f" {n}", f"class {draw.randint(0, 4)}")
        for n in range(draw.randint(8, 60))
    ]


def row_lines(draw: random.Random, format: str, rows: list[Row]) -> tuple[list[str], list[str]]:
    """The rows in a format of lines: what stands before them, and a line for each."""
    if format == "txt":
        return [], [text for text, _ in rows]
    if format == "tsv":
        return ["text\tlabel"], [f"{text}\t{label}" for text, label in rows]
    if format == "csv":
        quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        lines = []
        for row in rows:
            buffer = io.StringIO()
            csv.writer(buffer, lineterminator="", quoting=quoting).writerow(row)
            lines.append(buffer.getvalue())
        return ["text,label"], lines
    ascii_only = draw.random() < 0.3
    return [], [json.dumps({"text": text, "label": label}, ensure_ascii=ascii_only) for text, label in rows]


def drop_field(line: str, format: str) -> str:
    if format == "jsonl":
        return json.dumps({"text": json.loads(line)["text"]})
    return line.rpartition("\t" if format == "tsv" else ",")[0]


def break_line(draw: random.Random, line: str, format: str) -> str:
    """A line that is damaged in one of the ways of its format."""
    kind = draw.choice(["quote", "cut", "field", "double quote", "noise"])
    if kind == "quote" and '"' in line:
        places = [place for place, each in enumerate(line) if each == '"']
        place = draw.choice(places)
        return line[:place] + line[place + 1 :]
    if kind == "double quote":
        place = draw.randint(0, len(line))
        return f'{line[:place]}"{line[place:]}'
    if kind == "field" and format != "txt":
        return drop_field(line, format)
    if kind == "cut":
        return line[: draw.randint(1, len(line) - 1)]
    return f"{draw.choice(['xx', '},', 'a,b,c,d', '[1]', 'null'])} {line}"


def layout_json(draw: random.Random, lines: list[str]) -> str:
    """Lines of JSON in another layout."""
    kind = draw.choice(["list", "list of lines", "pretty", "wrapped", "pretty objects"])
    if kind == "list":
        return f"[{', '.join(lines)}]"
    if kind == "list of lines":
        return "[\n" + ",\n".join(lines) + "\n]\n"
    values = [json.loads(line) for line in lines]
    if kind == "pretty":
        return json.dumps(values, indent=2, ensure_ascii=False)
    if kind == "wrapped":
        return json.dumps({"version": 1, "data": values}, indent=draw.choice([None, 1]), ensure_ascii=False)
    return "\n".join(json.dumps(value, indent=4, ensure_ascii=False) for value in values)


class MadeFile:
    """A file, its rows as they were written, and what was done to it."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.rows = make_rows(draw)
        self.format = draw.choice(["txt", "jsonl", "csv", "tsv", "json", "parquet"])
        self.name = f"a.{self.format}"
        self.done: list[str] = []
        self.written = len(self.rows)
        """Rows, whole and broken."""
        self.has_own_rows = True
        """Whether each row that is read must be one that was written."""
        self.is_broken = False
        """Whether the file as a whole is damaged, so that nobody can tell how many rows there were."""
        content = self._parquet(draw) if self.format == "parquet" else self._text(draw)
        if self.format != "parquet" and draw.random() < 0.5:
            content = self._compress(draw, content)
        if draw.random() < 0.15 and self.format != "parquet":
            self.name = draw.choice([f"a.{self.format}", f"a.{self.format}.gz", f"a.{self.format}.xz"])
            self.done.append(f"named {self.name}")
        self.path = folder / self.name
        self.path.write_bytes(content)

    def _parquet(self, draw: random.Random) -> bytes:
        buffer = io.BytesIO()
        table = pa.table({"text": [text for text, _ in self.rows], "label": [label for _, label in self.rows]})
        pq.write_table(table, buffer, row_group_size=10)
        content = buffer.getvalue()
        if draw.random() < 0.5:
            self.done.append("cut or overwritten")
            self.is_broken, self.has_own_rows = True, False
            place = draw.randint(1, len(content) - 1)
            content = content[:place] if draw.random() < 0.5 else content[:place] + b"\xff\0" + content[place + 2 :]
        return content

    def _text(self, draw: random.Random) -> bytes:
        format = "jsonl" if self.format == "json" else self.format
        before, lines = row_lines(draw, format, self.rows)
        if self.format == "json":
            content = layout_json(draw, lines)
        else:
            lines = self._damage_lines(draw, lines, format)
            content = draw.choice(["\n", "\r\n"]).join([*before, *lines]) + draw.choice(["", "\n"])
        encoding = draw.choice(["utf-8"] * 5 + ["utf-8-sig", "utf-16", "utf-32"])
        data = content.encode(encoding)
        if encoding == "utf-8" and self.format != "json" and draw.random() < 0.3:
            data = self._mix_encodings(draw, data)
        return data

    def _damage_lines(self, draw: random.Random, lines: list[str], format: str) -> list[str]:
        for place in sorted(draw.sample(range(len(lines)), draw.choice([0, 0, 1, 2, 5])), reverse=True):
            kind = draw.choice(["break", "double", "blank"])
            self.done.append(f"{kind} {place}")
            if kind == "break":
                lines[place] = break_line(draw, lines[place], format)
                self.has_own_rows = False
            elif kind == "double":
                lines.insert(place, lines[place])
                self.written += 1
            else:
                lines.insert(place, "")
                self.written += 1
        return lines

    def _mix_encodings(self, draw: random.Random, data: bytes) -> bytes:
        self.done.append("bytes of another encoding")
        lines = data.split(b"\n")
        for place in draw.sample(range(1, len(lines) - 1), 2):
            end = len(lines[place]) // 2
            lines[place] = lines[place][:end] + draw.choice([b"\xe9 t\xe9", b"\xc4\xe3", b"\0"]) + lines[place][end:]
        self.has_own_rows = False
        return b"\n".join(lines)

    def _compress(self, draw: random.Random, data: bytes) -> bytes:
        ending, compress = draw.choice(COMPRESSIONS)
        self.name += ending
        place = draw.randint(0, len(data)) if draw.random() < 0.3 else len(data)
        packed = compress(data[:place]) + (compress(data[place:]) if place < len(data) else b"")
        damage = draw.random()
        if damage < 0.2:
            packed = packed[: draw.randint(1, len(packed) - 1)]
        elif damage < 0.3:
            packed += draw.choice([b"garbage", b"\x1f\x8b", b"PK\x03\x04"])
        else:
            return packed
        self.done.append("stream broken")
        self.is_broken = True
        return packed


@pytest.mark.parametrize("seed", range(SEEDS))
def test_each_row_of_a_broken_source_is_read_or_told_as_lost(tmp_path: Path, seed: int) -> None:
    """520 files in all."""
    draw = random.Random(seed)
    for number in range(FILES):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = MadeFile(folder, draw)
        settings = PLAIN if made.format == "txt" else SETTINGS
        what = f"seed {seed}, file {number}, {made.name}: {', '.join(made.done)}"
        records, tally = read(made.path, settings)
        assert tally.read == tally.kept + sum(tally.dropped.values()), what
        if made.is_broken and tally.read < made.written:
            assert tally.problems, what
        else:
            assert tally.read == made.written, f"{what}: {tally}"
        if not made.done:
            assert (tally.dropped, tally.problems) == ({}, []), what
        if made.has_own_rows:
            own = {row if made.format != "txt" else (row[0], None) for row in made.rows}
            assert {(record.text, record.label) for record in records} <= own, what
        report = report_source(made.name, str(made.path), 0, "", [tally])
        lost = tally.problems or set(tally.dropped) & LOSSES
        assert bool(lost) == (report.loss() is not None), what
        assert all(str(made.path) in line for line in dropped_rows([report]))
        if lost:
            with pytest.raises(UserError, match="cannot be read whole"):
                refuse_losses([report], [])
