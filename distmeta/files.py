"""Files that are there whole or not at all, whatever ends the process that writes them."""

import json
import uuid
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text file, and the folder that it is in: under another name, which then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, since two processes may write the same file.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_output(path: Path, text: str) -> None:
    """Write a text file where a user asked for it: what is no plain file, such as `/dev/stdout`, stays what it is."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(text, encoding="utf-8")
    else:
        write_text(path, text)


def write_json(path: Path, content: object, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=indent) + "\n")
