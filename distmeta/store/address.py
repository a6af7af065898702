"""Addresses of folders and files in a storage: `s3://bucket/folder`, `gs://…`, whatever pyarrow opens.

What stands behind a question mark says how to reach the storage, not where in it.
"""

import re
from typing import TYPE_CHECKING

from distmeta.errors import UserError, first_line

if TYPE_CHECKING:
    import pyarrow.fs

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]")


def names_storage(text: str) -> bool:
    """Whether a text is the address of something in a storage, rather than a path."""
    return ADDRESS.match(text) is not None


def join(address: str, *names: str) -> str:
    """The address of what is in a folder under some names, one in the other."""
    base, mark, query = address.partition("?")
    return "/".join([base.rstrip("/"), *(name.strip("/") for name in names)]) + mark + query


def name_of(address: str) -> str:
    """The last name of an address: that of the folder itself."""
    return address.partition("?")[0].rstrip("/").rpartition("/")[2]


def open_address(address: str, key: str) -> "tuple[pyarrow.fs.FileSystem, str]":
    """The storage of an address, and the path in it.

    Raises:
        UserError: no storage can be opened there; `key` is the setting that has the address.
    """
    import pyarrow.fs

    if re.search(r"://[^/@\s]+@", address):
        raise UserError(f"{key}: an address with a password in it; keys belong in the environment")
    try:
        return pyarrow.fs.FileSystem.from_uri(address)
    except Exception as error:  # whatever a storage may raise
        raise UserError(f"{key}: {address}: cannot be opened: {first_line(error)}") from None
