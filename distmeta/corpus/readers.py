"""Readers: the records in a piece of a source, one reader a format."""

from contextlib import suppress
from pathlib import PurePosixPath

from pyarrow.fs import FileType

from distmeta.corpus.builtin import DOCS, read_builtin
from distmeta.corpus.columnar import read_columns
from distmeta.corpus.json_rows import is_by_lines, read_json_lines, read_json_values
from distmeta.corpus.kinds import COMPRESSIONS, HEAD, compression_of, what_it_is
from distmeta.corpus.pieces import UNKNOWN, Piece
from distmeta.corpus.records import EMPTY, Dropped, Record, Records, RecordSettings, Tally
from distmeta.corpus.streams import BrokenStream, filesystem, read_head, read_plain
from distmeta.corpus.tabular import read_table
from distmeta.corpus.text_files import RefusedFile, TextFile, read_paragraphs


def read_piece(piece: Piece, settings: RecordSettings, tally: Tally) -> Records:
    """Yield the records of a piece, good and broken, in order.

    What is wrong with the file as a whole goes into the problems of `tally`, and what else is to be said of it into its
    notes. The consumer counts there what it takes, as `clean_records` does.
    """
    settings = settings.of_text(piece.text_column)
    try:
        if piece.format == UNKNOWN:
            raise RefusedFile(describe_unknown(piece))
        is_plain = piece.format == "text" or (piece.format == "builtin" and piece.path == DOCS)
        if is_plain and settings.label_column is not None:
            raise RefusedFile(
                f"plain text has no column {settings.label_column!r}; beside labelled sets, name the column of each by "
                "label_column in corpus.sources and leave tasks.label_column unset"
            )
        if piece.format == "builtin":
            yield from read_builtin(piece.path, settings)
        elif piece.format in ("parquet", "huggingface"):
            yield from read_columns(piece, settings, tally)
        else:
            yield from _read_text(piece, settings, tally)
    except RefusedFile as error:
        tally.problems.append(str(error))
    except BrokenStream as error:
        tally.problems.append(f"{error} before anything could be read")
    except OSError as error:
        tally.problems.append(f"cannot be read: {error}")
    if tally.read == 0 and not tally.problems:
        tally.notes.append(EMPTY)


def _read_text(piece: Piece, settings: RecordSettings, tally: Tally) -> Records:
    tally.unit = "line"
    file = TextFile(piece, settings, tally)
    try:
        if piece.format == "jsonl":
            if piece.is_whole and not is_by_lines(file.head, settings.text_column):
                tally.unit = "row"
                yield from read_json_values(file.characters(), settings, tally)
            else:
                yield from read_json_lines(file.lines(), settings, tally)
        elif piece.format in ("csv", "tsv"):
            yield from read_table(file.lines(), piece.format, piece.columns, settings, tally)
        elif settings.record == "paragraph":
            yield from read_paragraphs(file.lines(), settings)
        else:
            # Where records are cut into sentences, a line that is too long is cut too: a corpus may be one line.
            before, part = 0, 0
            for line in file.lines(cut=settings.split_sentences):
                number = line.number if isinstance(line, Dropped) else line[0]
                before, part = number, part + 1 if number == before else 0
                yield line if isinstance(line, Dropped) else Record(*line, part=part)
    finally:
        file.finish()


def describe_unknown(piece: Piece) -> str:
    """Return what is said of a file whose ending no reader knows. Raises OSError."""
    if filesystem(piece.root).get_file_info(piece.path).type != FileType.File:
        return "no file that can be read: a link to nothing?"
    head, path = read_head(piece.root, piece.path, HEAD), PurePosixPath(piece.path)
    compression = compression_of(head, path.name)
    with suppress(BrokenStream):
        head = next(read_plain(piece.root, piece.path, compression), b"") if compression else head
    found = what_it_is(head)
    ending = (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix
    unread = f"no reader knows the ending {ending}" if ending else "its name has no ending"
    if found is None:
        unread += f" (it is {compression}, which is read)" if compression else ""
        return f"{unread}: give its format, as in {{path: ..., format: text}}, or name the files to read by a glob"
    return f"{unread}; it seems to be {found[0]}: {found[1]}"
