"""Whether what `model.name_or_path` names can be a model's folder, by the files in it."""

import json
from pathlib import Path

from distmeta.errors import UserError

CONFIG = "config.json"

READ_FIRST = (
    CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Small files of a model, which are read before its weights."""


def check_folder(name_or_path: str) -> None:
    """Looks at a folder before anything is read from it; a name of the hub is left to the hub.

    Raises:
        UserError: it is a file, or a folder of something else, or a file in it is not what its name says.
    """
    folder = Path(name_or_path)
    refuse_missing(name_or_path, "model.name_or_path")
    if folder.is_file():
        raise UserError(f"model.name_or_path: {folder} is a file; give the folder that holds it and its {CONFIG}")
    if not folder.is_dir():
        return
    check_small_files(name_or_path, "model.name_or_path")
    if not (folder / CONFIG).exists():
        raise UserError(f"model.name_or_path: {folder} has no {CONFIG}{_where_it_is(folder)}")


def refuse_missing(name_or_path: str, key: str) -> None:
    """Refuses what can be no name of the hub, and is not there either.

    Raises:
        UserError: it is not there.
    """
    is_path = name_or_path.startswith((".", "/", "~")) or name_or_path.endswith("/") or name_or_path.count("/") > 1
    if is_path and not Path(name_or_path).exists():
        raise UserError(f"{key}: nothing is at {name_or_path}")


def check_small_files(name_or_path: str, key: str) -> None:
    """Looks at the configuration and the tokenizer of a folder that `key` names.

    Raises:
        UserError: a file is not what its name says.
    """
    for name in READ_FIRST:
        path = Path(name_or_path) / name
        if path.is_file() and (wrong := what_is_wrong(path)):
            raise UserError(f"{key}: {path} {wrong}")


def what_is_wrong(path: Path) -> str | None:
    """What a file is instead of a model's, as far as its first bytes tell: something else under its name."""
    with path.open("rb") as file:
        head = file.read(512)
    start = head.lstrip()[:15].lower()
    if not head:
        return "is empty; fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself; fetch that by `git lfs pull`"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b'{"error')):
        return "is an error page that was saved under this name; fetch it again"
    return None


def _where_it_is(folder: Path) -> str:
    """What the folder is instead of a model's, or which one inside it is one."""
    if (folder / "adapter_config.json").exists():
        return "; it holds an adapter (PEFT) and no network: merge it into its base model, and save that"
    inside = [path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))]
    modules = folder / "modules.json"
    if modules.is_file():  # of sentence-transformers
        try:
            places = [folder / module["path"] for module in json.loads(modules.read_text(encoding="utf-8"))]
        except (ValueError, KeyError, TypeError):
            places = []
        inside = [place for place in places if (place / CONFIG).exists()] or inside
    if (folder / "model" / CONFIG).exists():  # of a run, beside the network that it started with
        inside = [folder / "model"]
    if inside:
        others = f", or another of {len(inside)} folders in it" if len(inside) > 1 else ""
        return f"; give {inside[0]}{others}"
    files = sorted(path.name for path in folder.iterdir())
    return f"; it holds {', '.join(files[:3])}{' and others' if len(files) > 3 else ''}" if files else "; it is empty"
