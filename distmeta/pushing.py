"""An exported folder on the Hugging Face hub."""

from pathlib import Path

from distmeta.adapt.files import ACCOUNT
from distmeta.errors import UserError, first_line
from distmeta.models.description import FILE
from distmeta.rundir import RunDirectory

PRIVATE = [ACCOUNT, "report.html"]
"""Files that have texts of a user's examples."""


def push(directory: Path, name: str, *, public: bool) -> str:
    """Uploads a folder, of a run that of the network that it keeps; returns its address.

    Raises:
        UserError: there is none, nobody is logged in, or the hub refuses it.
    """
    run = RunDirectory(directory)
    folder = run.model if run.config.exists() else directory
    if not (folder / FILE).exists():
        raise UserError(f"{directory}: nothing is there that distmeta has exported; write it by `distmeta export`")
    import huggingface_hub as hub

    if hub.get_token() is None:
        raise UserError("push: you are not logged in to the Hugging Face hub: run `hf auth login`, or set HF_TOKEN")
    try:
        address = hub.create_repo(name, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=address.repo_id, folder_path=folder, ignore_patterns=PRIVATE)
    except Exception as error:  # whatever the hub or the way there may raise
        raise UserError(f"push: {name}: {first_line(error)}") from None
    return str(address)
