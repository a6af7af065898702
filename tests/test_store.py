"""What is kept at an address instead of on a disk, against an S3-compatible server: carried whole, by one writer."""

import json
import logging
import pickle
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from distmeta.config import load_config
from distmeta.corpus.elsewhere import Elsewhere
from distmeta.corpus.encoder import load_encoder
from distmeta.corpus.executor import LocalExecutor
from distmeta.corpus.manifest import Manifest
from distmeta.corpus.prepare import prepare as prepare_corpus
from distmeta.engine.checkpoint import read_checkpoint, write_checkpoint
from distmeta.engine.state import EngineState
from distmeta.errors import UserError
from distmeta.ownership import own, refuse_second
from distmeta.pipeline import check_claim
from distmeta.rundir import RunDirectory
from distmeta.store import cache, claim, folders, mirror
from distmeta.store.address import join, name_of, names_storage
from distmeta.store.cache import cached_folder
from distmeta.store.claim import Claim
from distmeta.store.folders import (
    Lent,
    address_of,
    as_given,
    attach,
    carry,
    close_folders,
    folder_on_worker,
    local_folder,
    refresh,
)
from distmeta.store.mirror import Mirror
from distmeta.train.storage import local_copy, newest_checkpoint
from tests.commands import distmeta_here
from tests.runs import begun_run, write_config
from tests.s3 import Server, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DISTMETA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(claim, "HEARTBEAT", 0.2)
    monkeypatch.setattr(claim, "SETTLE", 0.2)
    monkeypatch.setattr(claim, "EXPIRY", 2.0)
    monkeypatch.setattr(mirror, "INTERVAL", 0.1)
    monkeypatch.setattr(folders, "INTERVAL", 0.1)
    monkeypatch.setattr(folders, "_only_reads", False)
    yield
    close_folders()


@pytest.fixture
def address(server: Server, request: pytest.FixtureRequest) -> str:
    """Of a folder in which nothing is yet."""
    return f"s3://bucket/{request.node.name.replace('[', '-').rstrip(']')}/run"


def below(server: Server, address: str) -> dict[str, bytes]:
    """What is at an address, by name."""
    prefix = address.removeprefix("s3://bucket/") + "/"
    return {
        key.removeprefix(prefix): server.read("bucket", key) for key in server.keys("bucket") if key.startswith(prefix)
    }


def until(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_names_a_storage() -> None:
    assert [text for text in ("s3://b/x", "gs://b", "s3:/b/x", "file:///x", "/x", "me@h:x") if names_storage(text)] == [
        "s3://b/x",
        "gs://b",
    ]
    assert join("s3://b/x/?region=eu", "trials", "0001") == "s3://b/x/trials/0001?region=eu"
    assert name_of("s3://b/runs/x/?region=eu") == "x"


def test_what_is_written_here_is_there_and_comes_back_elsewhere(server: Server, address: str) -> None:
    folder = local_folder(address, "--run-dir")
    with own(folder):
        (folder / "weights").mkdir()
        (folder / "weights" / "best.safetensors").write_bytes(b"w" * 100_000)
        (folder / "config.yaml").write_text("a: 1\n")
        (folder / ".unfinished").write_text("no")
        (folder / "work").mkdir()
        (folder / "work" / "part").write_text("no")
        until(lambda: "config.yaml" in below(server, address))
        (folder / "config.yaml").unlink()
        (folder / "summary.json").write_text("{}")
    assert set(below(server, address)) == {"weights/best.safetensors", "summary.json"}
    close_folders()
    assert not folder.exists()
    again = local_folder(address, "--run-dir")
    assert again != folder
    assert (again / "weights" / "best.safetensors").read_bytes() == b"w" * 100_000
    assert address_of(again / "weights") == f"{address}/weights"
    assert as_given(f"wrote {folder}/summary.json, {again / 'x'}") == f"wrote {address}/summary.json, {address}/x"
    assert local_folder(f"{address}/trials/0001", "--run-dir") == again / "trials" / "0001"


def test_a_manifest_goes_first_and_comes_last(server: Server, address: str, tmp_path: Path) -> None:
    """Whoever reads meanwhile finds a corpus whole or none."""
    here = Mirror(address, "corpus.directory", tmp_path / "corpus")
    here.folder.mkdir()
    done: list[str] = []
    carried, deleted = here._carry_file, here.filesystem.delete_file
    here._carry_file = lambda name, state: (done.append(name), carried(name, state))  # type: ignore[method-assign]
    for content in ("one", "two, longer"):
        for name in ("manifest.json", "part-1", "zz"):
            (here.folder / name).write_text(content)
        found_at_part: list[bool] = []
        here.carry()
    assert done == ["part-1", "zz", "manifest.json"] * 2
    (here.folder / "manifest.json").write_text("three")
    (here.folder / "part-1").write_text("three")
    here._carry_file = lambda name, state: found_at_part.append("manifest.json" in below(server, address))  # type: ignore[assignment, method-assign, return-value]
    here.carry()
    assert found_at_part == [False, False]
    assert deleted is not None


def test_one_process_at_a_time_and_the_next_when_that_is_lost(server: Server, address: str, capsys) -> None:
    folder = local_folder(address, "--run-dir")
    filesystem, path = mirror.open_address(address, "--run-dir")
    other = Claim(filesystem, path, address)
    lost: list[str] = []
    other.take("process 1 on node7", print, lost.append)
    with pytest.raises(UserError, match="process 1 on node7 is writing there; wait for its end"):
        refuse_second(folder)
    with pytest.raises(UserError, match="process 1 on node7 is writing there"), own(folder):
        pass
    other._over.set()  # it is no more
    started = time.monotonic()
    with own(folder):
        assert time.monotonic() - started > 1.5
        assert not other.is_held()
    assert "process 1 on node7 gives no sign; waiting up to 2 s" in capsys.readouterr().err
    assert not below(server, address)


def test_the_one_that_was_taken_over_notices_and_writes_no_more(server: Server, address: str, tmp_path: Path) -> None:
    here = Mirror(address, "--run-dir", tmp_path / "here")
    here.folder.mkdir()
    lost: list[str] = []
    here.claim.take("the older one", print, lost.append)
    (here.folder / "metrics.jsonl").write_text("1\n")
    here.carry()
    other = Claim(here.filesystem, here.path, address)
    other.token = "newer"
    other._write(claim.OWNER, {"token": "newer", "who": "the newer one"})
    (here.folder / "metrics.jsonl").write_text("1\n2\n")
    with pytest.raises(UserError, match="another process has taken it over"):
        here.carry()
    until(lambda: lost == ["the newer one"])
    here.claim.release()
    assert below(server, address)["metrics.jsonl"] == b"1\n"
    assert other.is_held()


def test_of_two_that_begin_at_the_same_time_one_goes_on(server: Server, address: str) -> None:
    """Ten times, at random offsets."""
    generator = random.Random(0)
    for number in range(10):
        where = f"{address}{number}"
        claims = [Claim(*mirror.open_address(where, "--run-dir"), where) for _ in range(2)]
        offset = generator.random() * 0.3

        def attempt(each: Claim, wait: float) -> str:
            time.sleep(wait)
            try:
                each.take(f"{wait}", lambda text: None, lambda other: None)
            except UserError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(2) as pool:
            said = list(pool.map(attempt, claims, (0.0, offset)))
        assert sorted(map(bool, said)) == [False, True], (offset, said)
        assert [each.is_held() for each in claims] == [not text for text in said]
        for each in claims:
            each.release()


@pytest.mark.slow
def test_a_storage_that_is_gone_for_a_while_is_waited_for_and_told(
    server: Server, address: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = local_folder(address, "--run-dir")
    with own(folder), caplog.at_level(logging.WARNING):
        server.stop()
        threading.Timer(10, server.start).start()  # pyarrow itself tries for 6 s
        (folder / "summary.json").write_text("{}")
        carry(folder)
    assert below(server, address) == {"summary.json": b"{}"}
    said = [record.getMessage() for record in caplog.records if record.name.startswith("distmeta")]
    first, second = said[0], said[-1]
    assert first.startswith(f"{address} does not answer (")
    assert "trying again" in first
    assert second.startswith(f"{address} answers again after ")

    monkeypatch.setenv("DISTMETA_STORAGE_WAIT", "0.5")
    other = local_folder(f"{address}-2", "--run-dir")
    with own(other):
        (other / "summary.json").write_text("{ }")
        server.stop()
        try:
            with pytest.raises(
                UserError, match=rf"{address}-2: cannot be reached for 0 s .*what was to go there is in /"
            ):
                carry(other)
        finally:
            server.start()


def test_what_could_not_be_carried_stays_where_it_is_said_to_be(
    server: Server, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the next process clears away the folders of those that have ended."""
    folder = local_folder(address, "--run-dir")
    (folder / "summary.json").write_text("{}")

    def fails() -> None:
        raise UserError(f"{address}: cannot be reached; what was to go there is in {folder}")

    mirror_of = folders.mirror_of(folder)
    assert mirror_of is not None
    monkeypatch.setattr(mirror_of, "stop", fails)
    with pytest.raises(UserError) as refusal:
        close_folders()
    monkeypatch.setattr(Path, "exists", lambda self: self.parent != Path("/proc") and bool(self.stat()))  # none runs
    local_folder(f"{address}-next", "--run-dir")
    kept = Path(str(refusal.value).split("what was to go there is in ")[1])
    assert (kept / "summary.json").read_text() == "{}"


def test_workers_have_the_weights_that_the_first_one_has_written_since(server: Server, address: str) -> None:
    with own(local_folder(address, "--run-dir")):
        pass
    close_folders()
    first = Mirror(address, "--run-dir", folders._new_folder(address), lambda name: True)
    other = Mirror(address, "--run-dir", folders._new_folder(address), lambda name: False)
    folders._mirrors |= {each.folder: each for each in (first, other)}
    for written in (b"one", b"another"):
        (first.folder / "weights").mkdir(exist_ok=True)
        (first.folder / "weights" / "best.safetensors").write_bytes(written)
        carry(first.folder)
        refresh(other.folder / "weights")
        assert (other.folder / "weights" / "best.safetensors").read_bytes() == written


def test_while_workers_train_their_files_are_theirs(server: Server, address: str) -> None:
    """Rank 0 may be on another node: the driver reads what it writes from the address, and it the driver's stop."""
    folder = local_folder(address, "--run-dir")
    with own(folder):
        (folder / "weights").mkdir()
        (folder / "weights" / "starting.safetensors").write_text("start")
        (folder / "report.html").write_text("page")
        (folder / "metrics.jsonl").write_text('{"outer_step": 1}\n')
        lent = Lent(folder)
        driver_mirrors, folders._mirrors = folders._mirrors, {}  # a worker's process has its own
        temporary, folders._temporary = folders._temporary, []
        with folder_on_worker(address, 0, lent.owner) as of_rank_0:
            assert of_rank_0 != folder
            assert sorted(path.name for path in of_rank_0.rglob("*") if path.is_file()) == [
                "metrics.jsonl",
                "starting.safetensors",
            ]
            with (of_rank_0 / "metrics.jsonl").open("a") as file:
                file.write('{"outer_step": 2}\n')
            (of_rank_0 / "events-0.jsonl").write_text("{}\n")
            until(lambda: len((folder / "metrics.jsonl").read_text().splitlines()) == 2)
            until((folder / "events-0.jsonl").exists)
            (folder / "stop-requested").touch()
            until((of_rank_0 / "stop-requested").exists)
            (folder / "stop-requested").unlink()
            until(lambda: not (of_rank_0 / "stop-requested").exists())
            (of_rank_0 / "weights" / "best.safetensors").write_text("best")
            RunDirectory(of_rank_0).has_checkpoint.touch()
        assert not of_rank_0.exists()
        folders._mirrors, folders._temporary, folders._only_reads = driver_mirrors, temporary, False
        assert not (folder / "weights" / "best.safetensors").exists()
        lent.end()
        assert (folder / "weights" / "best.safetensors").read_text() == "best"
        assert RunDirectory(folder).has_checkpoint.exists()
    assert below(server, address)["metrics.jsonl"] == b'{"outer_step": 1}\n{"outer_step": 2}\n'


def test_a_worker_whose_driver_was_taken_over_writes_no_more(server: Server, address: str) -> None:
    folder = local_folder(address, "--run-dir")
    with (
        own(folder),
        pytest.raises(UserError, match="another process has taken it over"),
        folder_on_worker(address, 0, (address, "the token of before")) as of_rank_0,
    ):
        (of_rank_0 / "metrics.jsonl").write_text("{}\n")
    assert "metrics.jsonl" not in below(server, address)


def test_the_workers_of_a_part_go_by_the_claim_of_the_whole(server: Server, address: str) -> None:
    """Of a trial, or of a baseline."""
    folder = local_folder(address, "--run-dir")
    trial = folder / "trials" / "0001"
    with own(folder):
        trial.mkdir(parents=True)
        (trial / "trial.json").write_text("{}")
        lent = Lent(trial)
        mirrors, folders._mirrors = folders._mirrors, {}
        temporary, folders._temporary = folders._temporary, []
        with folder_on_worker(f"{address}/trials/0001", 0, lent.owner) as of_rank_0:
            assert (of_rank_0 / "trial.json").exists()
            (of_rank_0 / "metrics.jsonl").write_text("{}\n")
        folders._mirrors, folders._temporary, folders._only_reads = mirrors, temporary, False
        lent.end()
        assert (trial / "metrics.jsonl").read_text() == "{}\n"


def test_a_process_beside_the_driver_reads_and_writes_nothing_there(
    server: Server, address: str, tmp_path: Path
) -> None:
    attach(address, tmp_path)
    (tmp_path / "trial.json").write_text("{}")
    carry(tmp_path)
    assert not below(server, address)


def test_a_node_has_one_copy_whoever_asks_and_forgets_the_oldest_that_nobody_uses(
    server: Server, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Mirror(address, "corpus.directory", tmp_path / "corpus")
    (here.folder / "classes").mkdir(parents=True)
    (here.folder / "classes" / "a").write_bytes(b"a" * 1000)
    (here.folder / "manifest.json").write_text("1")
    here.carry()
    copied: list[str] = []
    copy = cache._copy
    monkeypatch.setattr(cache, "_copy", lambda *rest: (copied.append(rest[1]), copy(*rest)))
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: cached_folder(address, "manifest.json"), range(4)))
    (first,) = found
    assert len(copied) == 1
    assert (first / "classes" / "a").read_bytes() == b"a" * 1000
    (here.folder / "manifest.json").write_text("2, another")
    here.carry()
    second = cached_folder(address, "manifest.json")
    assert first.exists()
    assert second != first
    monkeypatch.setenv("DISTMETA_CACHE_GIB", "0.0000015")
    assert cached_folder(address, "manifest.json") == second
    assert first.exists(), "this process has asked for it"
    cache._IN_USE.pop(first).close()  # as when the process ends
    assert cached_folder(address, "manifest.json") == second
    assert not first.exists()
    for much in ("much", "-1", "nan"):
        monkeypatch.setenv("DISTMETA_CACHE_GIB", much)
        with pytest.raises(UserError, match=f"DISTMETA_CACHE_GIB: {much} is no number of GiB: give one such as 100"):
            cached_folder(address, "manifest.json")
    with pytest.raises(UserError, match=r"nothing is prepared there: it has no manifest\.json"):
        cached_folder(f"{address}/none", "manifest.json")


def test_a_storage_that_is_empty_now_does_not_begin_a_run_again(tmp_path: Path) -> None:
    """A disk that is not mounted is an empty folder."""
    config, run = begun_run(tmp_path, train={"storage": str(tmp_path / "disk")})
    checkpoints = tmp_path / "disk" / run.path.name / "checkpoints"
    assert newest_checkpoint(config, run) is None  # which is so before the first one
    some = EngineState(3, *({"a": torch.ones(4)} for _ in range(3)))
    write_checkpoint(checkpoints / "checkpoint_3", some, {"outer_step": 3})
    run.has_checkpoint.touch()
    assert newest_checkpoint(config, run) is not None
    shutil.rmtree(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(UserError, match="the checkpoints of this run are gone: see whether what they are on is mount"):
        newest_checkpoint(config, run)
    with pytest.raises(UserError, match="the checkpoints of this run are gone"):
        check_claim(config, run, resume=True)
    run.has_checkpoint.unlink()
    assert newest_checkpoint(config, run) is None


def test_a_node_has_one_copy_of_the_checkpoint_that_its_workers_go_on_from(
    server: Server, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none of one that does not arrive as it was."""
    config, run = begun_run(tmp_path, train={"storage": address})
    stored = Mirror(f"{address}/{run.path.name}/checkpoints", "train.storage", tmp_path / "stored")
    some = EngineState(3, *({"a": torch.full((4,), value)} for value in (1.0, 2.0, 3.0)))
    write_checkpoint(stored.folder / "checkpoint_3", some, {"outer_step": 3})
    stored.carry()
    found = newest_checkpoint(config, run)
    assert found is not None
    with ThreadPoolExecutor(3) as pool:
        copies = set(pool.map(lambda _: local_copy(config, run, str(found[1])), range(3)))
    (copy,) = copies
    assert torch.equal(read_checkpoint(copy)[0].exp_avg["a"], torch.full((4,), 2.0))
    (stored.folder / "checkpoint_4").mkdir()
    for file in (stored.folder / "checkpoint_3").iterdir():
        content = file.read_bytes()
        damaged = content[:-1] + b"1" if file.suffix == ".safetensors" else content
        (stored.folder / "checkpoint_4" / file.name).write_bytes(damaged)
    stored.carry()
    with pytest.raises(OSError, match="is not what is stored: the content of part-00000"):
        local_copy(config, run, str(found[1].with_name("checkpoint_4")))
    assert [each for each in copy.parent.iterdir() if each.is_dir()] == [copy]


def test_a_corpus_is_prepared_at_an_address_and_used_from_there(
    server: Server, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = f"{address}/corpus"
    config = write_config(tmp_path, corpus={"sources": ["texts.csv"], "directory": corpus})
    done = distmeta_here("prepare", "--config", config, "--run-dir", "one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    there = below(server, corpus)
    assert "manifest.json" in there
    assert not [name for name in there if name.startswith("work/")]
    before = dict(there)
    shown = distmeta_here("tasks", "--config", config, "--run-dir", "two", "--json", cwd=tmp_path)
    assert json.loads(shown.stdout)["support"]
    at_address = distmeta_here("tasks", "--config", config, "--run-dir", f"{address}/two", "--json", cwd=tmp_path)
    assert at_address.stdout == shown.stdout
    assert {
        name: content for name, content in below(server, corpus).items() if not name.startswith("used-by")
    } == before
    assert not list((tmp_path / "cache" / "mirrors").iterdir())

    # The corpus of a run is in it, unless the setting says otherwise.
    config = write_config(tmp_path)
    assert distmeta_here("prepare", "--config", config, "--run-dir", f"{address}/two", cwd=tmp_path).returncode == 0
    folder = local_folder(f"{address}/two", "--run-dir")
    assert not (folder / "corpus").exists()
    assert Manifest.load_whole(folders.corpus_folder(None, folder / "corpus")) is not None
    monkeypatch.setattr(folders, "_only_reads", True)
    assert Manifest.load_whole(folders.corpus_folder(None, folder / "corpus")) is not None


class OtherNodes:
    """An executor each of whose units is done where nothing is on the disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def map(self, function: Any, units: Sequence[Any], description: str) -> Iterator[Any]:
        for unit in units:
            hidden = self._directory.with_name("hidden")
            mirrors, folders._mirrors = folders._mirrors, {}
            self._directory.rename(hidden)
            try:
                yield pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(unit)))
            finally:
                load_encoder.cache_clear()
                shutil.rmtree(self._directory, ignore_errors=True)
                hidden.rename(self._directory)
                folders._mirrors = mirrors


def test_nodes_that_share_nothing_prepare_a_corpus_together(
    server: Server, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_config(write_config(tmp_path, corpus={"sources": ["texts.csv"], "deduplicate": True}))
    options = {"tokenizer_source": None, "max_length": 32}
    parts = (settings.corpus, settings.tokenizer, settings.tasks)
    plain = prepare_corpus(tmp_path / "plain", *parts, executor=LocalExecutor(), **options)
    directory = local_folder(address, "corpus.directory")
    monkeypatch.setattr(mirror, "INTERVAL", 60.0)  # this process is not to miss what is hidden
    monkeypatch.setattr("distmeta.corpus.prepare.spread", lambda executor, _: executor)
    monkeypatch.setattr("distmeta.corpus.prepare.clean", lambda *_: None)
    elsewhere = Elsewhere(OtherNodes(directory), address, directory)
    with own(directory):
        made = prepare_corpus(directory, *parts, executor=elsewhere, **options)
    assert made == plain
    there = below(server, address)
    expected = {path.relative_to(tmp_path / "plain").as_posix(): path for path in (tmp_path / "plain").rglob("*")}
    for name, content in there.items():
        assert content == expected[name].read_bytes()
    assert "manifest.json" in there


def test_a_bucket_that_is_not_there_is_told(server: Server, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    done = distmeta_here("prepare", "--config", config, "--run-dir", "s3://no-such-bucket/run", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("distmeta: --run-dir: s3://no-such-bucket/run: ")
