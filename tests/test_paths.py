"""Paths that users give: an address is taken for none, and what cannot be a folder is told before anything is made."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distmeta.cli import app
from distmeta.config import load_config
from distmeta.errors import UserError
from distmeta.opening import open_run
from distmeta.pipeline import check_claim
from distmeta.rundir import RunDirectory
from tests.runs import write_config

COMMANDS = ("prepare", "tasks", "pretrain", "evaluate", "export", "sweep", "plan")


def refused(folder: Path, *arguments: str) -> str:
    """The line with which a command is refused; nothing is made in the folder."""
    write_config(folder)
    before = sorted(folder.rglob("*"))
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, UserError), result.output
    assert sorted(folder.rglob("*")) == before
    line = str(result.exception)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("s3:/bucket/run", "is no address of a storage"),
        ("me@host:run", "is no address of a storage"),
        ("http://host/run", "cannot be opened"),
        ("s3://KEY:SECRET99@bucket/run", "keys belong in the environment"),
    ],
)
def test_an_address_that_is_none_of_a_storage_is_refused(
    command: str, address: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(tmp_path, command, "--config", "run.yaml", "--run-dir", address)
    assert line.startswith("--run-dir: ")
    assert why in line
    assert "SECRET99" not in line


@pytest.mark.parametrize("where", ["library", "command"])
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "is empty"),
        ("file", "is a file, not a folder"),
        ("file/run", "is a file, not a folder"),
        ("link", "which is not there"),
        ("link/run", "which is not there"),
        ("circle", "circle"),
        ("~no-such-user/run", "home of a user whom this machine does not know"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_can_be_no_folder_is_told(
    where: str, path: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    write_config(tmp_path)
    if where == "command":
        assert why in refused(tmp_path, "tasks", "--config", "run.yaml", "--run-dir", path)
    elif path:
        with pytest.raises(UserError, match=why):
            open_run(tmp_path / "run.yaml", [], Path(path))


def test_the_home_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does not expand it behind `=`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert open_run(write_config(tmp_path), [], Path("~/run"))[1].path == tmp_path / "home/run"


PATHS = {
    "corpus.stop_words_file": "file",
    "tasks.split_files.train": "file",
    "tokenizer.name_or_path": "folder",
    "model.name_or_path": "folder",
}


@pytest.mark.parametrize("address", ["s3://bucket/x", "s3:/bucket/x", "'  '", "~no-such-user/x"])
@pytest.mark.parametrize("key", PATHS)
def test_a_setting_that_is_a_path_is_no_address(key: str, address: str, tmp_path: Path) -> None:
    others = [f"tasks.split_files.{split}={tmp_path}/texts.csv" for split in ("train", "valid", "test")]
    more = others if key.startswith("tasks") else []
    with pytest.raises(UserError) as refusal:
        load_config(write_config(tmp_path), [*more, f"{key}={address}"])
    assert str(refusal.value).startswith(f"{key}: ")
    assert str(refusal.value).endswith(f"give a {PATHS[key]} on a disk that all nodes see")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("address", "why"), [("s3:/bucket/x", "has two slashes"), ("'  '", "give a folder")])
@pytest.mark.parametrize("key", ["corpus.directory", "train.storage"])
def test_a_folder_that_may_be_at_an_address_is_one_or_the_other(key: str, address: str, why: str, tmp_path: Path):
    with pytest.raises(UserError, match=f"^{key}: .*{why}"):
        load_config(write_config(tmp_path), [f"{key}={address}"])


@pytest.mark.parametrize(
    ("storage", "why"),
    [
        ("s3:/bucket/x", "an address has two slashes"),
        ("nothing://bucket/x", "cannot be reached"),
        ("hf://datasets/x/", "cannot be reached"),
        ("texts.csv", "is a file, not a folder"),
        ("texts.csv/x", "is a file, not a folder"),
        ("link/x", "which is not there"),
    ],
)
def test_a_storage_that_can_be_none_is_told_before_anything_starts(storage: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    path = write_config(tmp_path, train={"storage": storage})
    for resume in (False, True):
        with pytest.raises(UserError, match=why) as refusal:
            check_claim(load_config(path), RunDirectory(tmp_path / "run"), resume)
        assert str(refusal.value).startswith("train.storage: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["model", "tokenizer"])
@pytest.mark.parametrize("path", ["/nowhere/x", "./x", "../x", "x/", "some/where/x"])
def test_what_can_be_no_name_of_the_hub_is_looked_for_on_the_disk_alone(key: str, path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{key}.name_or_path: nothing is at {re.escape(path)}$"):
        open_run(write_config(tmp_path), [f"{key}.name_or_path={path}"], tmp_path / "run")


@pytest.mark.parametrize("command", ["config", *COMMANDS])
def test_a_configuration_is_no_address(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(tmp_path, command, "--config", "s3://bucket/run.yaml")
    assert line.startswith("--config: s3://bucket/run.yaml is an address")


def test_a_page_goes_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(tmp_path, "report", "s3:/bucket/run").startswith("DIR: s3:/bucket/run is no address of a storage")
    assert refused(tmp_path, "report", ".", "--output", "s3://b/x.html").startswith(
        "--output: s3://b/x.html is an addr"
    )
