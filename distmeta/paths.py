"""Paths that a user gives: where a folder on a disk is meant, an address is not taken for one."""

import os
import re
from pathlib import Path

from distmeta.errors import UserError
from distmeta.store.address import names_storage
from distmeta.store.folders import local_folder

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|[\w.-]+@[\w.-]+:")
"""What an address begins with, also where the second slash was forgotten or lost, or as `scp` takes it."""


def is_address(text: str) -> bool:
    """Whether a text is meant as the address of something that is no file of this machine."""
    return ADDRESS.match(text) is not None


def why_no_path(text: str) -> str | None:
    """What keeps a text from being a path, if anything."""
    if not text.strip():
        return "is empty"
    if "\0" in text:
        return "has a character that no path can have"
    if is_address(text):
        return f"{text} is an address, and only a path will do"
    try:
        Path(text).expanduser()
    except RuntimeError:
        return f"{text} would be in the home of a user whom this machine does not know"
    return None


def local_path(text: str, key: str) -> Path:
    """The path that a text is; `~` is the user's home.

    Raises:
        UserError: it is none.
    """
    reason = why_no_path(text)
    if reason:
        raise UserError(f"{key}: {reason}; give a path on a disk that all nodes see")
    return Path(text).expanduser()


def folder_of(text: str, key: str) -> Path:
    """The local folder of a run: the path that a text is, or what stands for the address that it is.

    Raises:
        UserError: it is neither, or the storage cannot be reached.
    """
    if names_storage(text):
        return local_folder(text, key)
    if is_address(text):
        raise UserError(f"{key}: {text} is no address of a storage: give one such as s3://bucket/folder, or a path")
    return local_path(text, key)


def network_of(text: str) -> str:
    """A network that a user names: the local folder of an address, all else as it is."""
    return str(local_folder(text, "MODEL")) if names_storage(text) else text


def check_folder(path: Path, key: str, *, writable: bool = False) -> None:
    """Refuses a folder that is not there and cannot be made; where it is to be `writable`, also one that is not.

    Raises:
        UserError: with what stands in the way.
    """
    try:
        for each in (path, *path.parents):
            if each.is_symlink() and not each.exists():
                raise UserError(f"{key}: {each} is a link to {os.readlink(each)}, which is not there")
            if each.exists():
                if not each.is_dir():
                    raise UserError(f"{key}: {each} is a file, not a folder")
                if writable and not os.access(each, os.W_OK | os.X_OK):
                    raise UserError(f"{key}: {each} cannot be written in")
                return
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror}") from None


def run_folder(path: Path) -> Path:
    """The folder that `--run-dir` means, as an absolute path without links; it need not be there yet.

    Raises:
        UserError: it is no path, or no folder can be there.
    """
    path = folder_of(str(path), "--run-dir").absolute()
    check_folder(path, "--run-dir")
    return path.resolve()
