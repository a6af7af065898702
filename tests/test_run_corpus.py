"""The corpus of a run: what a run began with stays as it was, whatever is refused, and no other one is taken for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distmeta.config import load_config
from distmeta.corpus.executor import LocalExecutor
from distmeta.corpus.manifest import Manifest
from distmeta.errors import UserError
from distmeta.opening import open_run, reopen_run
from distmeta.pipeline import claim, draw_tasks, evaluate, export, prepare, pretrain
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import resolve
from tests.corpora import write_labelled_csv
from tests.runs import begun_run, contents, quiet, write_config

FEW: dict[str, Any] = {"evaluate": {"episodes": 2}}


def change_source(folder: Path) -> None:
    text = (folder / "texts.csv").read_text()
    (folder / "texts.csv").write_text(text.replace("topica", "otherwise"))


def resumed(folder: Path, *overrides: str) -> None:
    pretrain(*open_run(folder / "run.yaml", list(overrides), folder / "run"), resume=True, say=quiet)


def prepared(folder: Path, *overrides: str) -> None:
    prepare(*open_run(folder / "run.yaml", list(overrides), folder / "run"), quiet)


def shown(folder: Path, *overrides: str) -> None:
    list(draw_tasks(*open_run(folder / "run.yaml", list(overrides), folder / "run"), "train", 0, 1, quiet))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return begun_run(tmp_path, **FEW)[1]


@pytest.mark.parametrize("command", [resumed, prepared, shown])
def test_a_command_that_is_refused_leaves_what_the_run_began_with(
    command: Callable[..., None], run: RunDirectory, tmp_path: Path
) -> None:
    """A source that has changed, settings that have: the line says which, and the run can still be evaluated."""
    before = contents(run.path)
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 600 before, 700 now"):
        command(tmp_path, "tokenizer.vocab_size=700")
    change_source(tmp_path)
    with pytest.raises(UserError, match=r"began with the corpus .* \(the source texts\.csv has changed\).*--run-dir"):
        command(tmp_path)
    assert contents(run.path) == before
    assert "meta-pretrained" in evaluate(*reopen_run(None, [], run.path), quiet)


@pytest.mark.parametrize("lost", ["its own corpus", "a part of it"])
def test_a_corpus_that_is_lost_is_made_again_if_it_is_the_same(lost: str, run: RunDirectory, tmp_path: Path) -> None:
    before = Manifest.load(run.corpus)
    part = run.corpus / before.segment_parts[0].path
    whole = part.read_bytes()
    part.unlink()
    if lost == "its own corpus":
        for file in sorted(run.corpus.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        run.corpus.rmdir()
    with pytest.raises(UserError, match="no prepared corpus is there, or it is not whole"):
        evaluate(*reopen_run(None, [], run.path), quiet)
    text = (tmp_path / "texts.csv").read_bytes()
    change_source(tmp_path)
    with pytest.raises(UserError, match="not the one that this run began with"):
        prepared(tmp_path)
    if lost == "its own corpus":
        assert not run.corpus.exists()
    (tmp_path / "texts.csv").write_bytes(text)
    prepared(tmp_path)
    after = Manifest.load_whole(run.corpus)
    assert after is not None
    assert after.model_dump() == before.model_dump()
    assert part.read_bytes() == whole


def test_a_run_goes_on_where_its_sources_are_gone(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").unlink()
    said: list[str] = []
    config, _ = open_run(None, [], run.path)
    prepare_with(LocalExecutor(), config, run, said.append)
    assert said[0].startswith(f"corpus.sources: nothing is at {tmp_path}/texts.csv: going on with the corpus")
    assert "meta-pretrained" in evaluate(*reopen_run(tmp_path / "run.yaml", [], run.path), quiet)
    with pytest.raises(UserError, match="nothing is at"):
        open_run(tmp_path / "run.yaml", [], tmp_path / "another")


def test_a_run_goes_on_with_the_corpus_of_the_version_that_it_began_with(run: RunDirectory, tmp_path: Path) -> None:
    """A newer one would prepare another corpus of the same sources."""
    manifest = json.loads((run.corpus / "manifest.json").read_text())
    older = manifest | {"version": manifest["version"] - 1, "config_hash": "other", "input_hash": "other"}
    (run.corpus / "manifest.json").write_text(json.dumps(older))
    before = contents(run.path)
    said: list[str] = []
    prepare(*open_run(None, [], run.path), said.append)
    assert "another version of distmeta: going on with it as it is" in said[0]
    change_source(tmp_path)
    with pytest.raises(UserError, match=r"texts\.csv has changed"):
        prepared(tmp_path)
    assert contents(run.path) == before


def test_a_shared_corpus_is_not_replaced_while_runs_are_there_that_began_with_it(tmp_path: Path) -> None:
    shared = {"corpus": {"sources": ["texts.csv"], "directory": "shared"}}
    config, run = begun_run(tmp_path, "first", **shared)
    second = RunDirectory(tmp_path / "second")
    prepare_with(LocalExecutor(), config, second, quiet)
    before = {name: data for name, data in contents(tmp_path / "shared").items() if not name.startswith("work/")}
    change_source(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}/shared: {tmp_path}/first began with .*another corpus\.directory"):
        prepare_with(LocalExecutor(), config, second, quiet)
    after = {name: data for name, data in contents(tmp_path / "shared").items() if not name.startswith("work/")}
    assert after == before
    (tmp_path / "first").rename(tmp_path / "removed")
    prepare_with(LocalExecutor(), config, second, quiet)
    # The first run does not take what is there now for its own.
    (tmp_path / "removed").rename(tmp_path / "first")
    with pytest.raises(UserError, match="not the one that this run began with"):
        prepare_with(LocalExecutor(), config, run, quiet)


def test_a_corpus_may_move_and_no_other_is_taken_for_it(run: RunDirectory, tmp_path: Path) -> None:
    run.corpus.rename(tmp_path / "moved")
    config, _ = open_run(None, [f"corpus.directory={tmp_path}/moved"], run.path)
    prepare_with(LocalExecutor(), config, run, quiet)
    claim(config, run)
    assert load_config(run.config, check=False).corpus.directory == str(tmp_path / "moved")
    other = other_corpus(tmp_path, vocab_size=500)
    config, _ = open_run(None, [f"corpus.directory={other}"], run.path)
    before = contents(other)
    with pytest.raises(UserError, match="not the one that this run began with"):
        prepare_with(LocalExecutor(), config, run, quiet)
    with pytest.raises(UserError, match="not the one that this run began with"):
        claim(config, run)
    assert contents(other) == before


def other_corpus(folder: Path, **tokenizer: Any) -> Path:
    """The prepared corpus of other texts, of fourteen classes."""
    (folder / "other").mkdir()
    write_labelled_csv(folder / "other/texts.csv", classes=14, rows=24)
    path = write_config(folder / "other", tokenizer={"max_length": 32, **tokenizer})
    prepare_with(LocalExecutor(), resolve(load_config(path)), RunDirectory(folder / "other"), quiet)
    return folder / "other/corpus"


@pytest.mark.parametrize("command", [evaluate, lambda config, run, say: export(config, run)])
def test_a_network_never_meets_the_ids_of_another_tokenizer(
    command: Callable[..., Any], run: RunDirectory, tmp_path: Path
) -> None:
    other = other_corpus(tmp_path, vocab_size=600)
    before = contents(run.path)
    with pytest.raises(UserError, match=rf"{other}: the corpus has another tokenizer than the network in {run.path}"):
        command(*reopen_run(None, [f"corpus.directory={other}"], run.path), quiet)
    assert contents(run.path) == before


@pytest.mark.parametrize(
    "override", ["corpus.sources=[others.csv]", "tasks.n_way=2", "tasks.split_ratio=[0.4, 0.3, 0.3]", "train.seed=9"]
)
def test_what_an_evaluation_would_pass_over_is_refused(override: str, run: RunDirectory, tmp_path: Path) -> None:
    """The corpus that is scored is the one that is prepared, with its classes split as they are."""
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=f"^{key}: .* before, .* now"):
        reopen_run(None, [override], run.path)
    # Of another corpus it is not asked what it was made of, and what leaves the ways to the tasks may change both.
    reopen_run(None, [override, f"corpus.directory={tmp_path}"], run.path)
    reopen_run(write_config(tmp_path, tasks={"n_way": 2}), [], run.path)


def test_another_corpus_of_the_same_tokenizer_is_scored_as_what_it_is(run: RunDirectory, tmp_path: Path) -> None:
    own = evaluate(*reopen_run(None, [], run.path), quiet)
    before = run.evaluation.read_bytes()
    other = other_corpus(tmp_path, name_or_path=str(run.corpus / "tokenizer"))
    table = evaluate(*reopen_run(None, [f"corpus.directory={other}", "evaluate.split=train"], run.path), quiet)
    line = f"another corpus than the run's, {other}\n"
    assert line in table
    assert line not in own
    assert run.evaluation.read_bytes() == before
    (kept,) = (json.loads(file.read_text()) for file in run.evaluations.glob("train_*.json"))
    assert kept["corpus"]["is_of_the_run"] is False
    assert kept["corpus"]["content_digest"] == Manifest.load(other).content_digest
    trained = class_names(run.corpus, "train") & class_names(other, "train")
    assert kept["overlap"]["classes_in_training_tasks"] == len(trained) > 0
    run.corpus.rename(tmp_path / "lost")
    table = evaluate(*reopen_run(None, [f"corpus.directory={other}"], run.path), quiet)
    assert f"{line.strip()}, of which it is not known whether the network was trained on it" in table


def class_names(corpus: Path, split: str) -> set[str]:
    import pyarrow.parquet as pq

    parts = Manifest.load(corpus).class_parts(corpus, split)
    return {name for part in parts for name in pq.read_table(part)["class"].to_pylist()}


def test_a_run_on_a_mixture_goes_on_with_other_weights_and_not_with_other_roles_or_names(tmp_path: Path) -> None:
    write_labelled_csv(tmp_path / "b.csv", classes=3, rows=9)

    def sections(**second: Any) -> dict[str, Any]:
        sources = [{"path": "texts.csv", "name": "a"}, {"path": "b.csv", "name": "b", "role": "train", **second}]
        return {"corpus": {"sources": sources}, "tasks": {"n_way": [2, 3]}}

    _, run = begun_run(tmp_path, **sections())

    def prepare_again(**second: Any) -> None:
        config = resolve(load_config(write_config(tmp_path, **sections(**second))))
        prepare_with(LocalExecutor(), config, run, quiet)

    before = contents(run.path)
    prepare_again(weight=3.0)
    for second, told in (
        ({"role": "test"}, "other settings of corpus, tokenizer or tasks"),
        ({"name": "c"}, r"other settings .*; the source b\.csv of b is gone; the source b\.csv of c is new"),
    ):
        with pytest.raises(UserError, match=f"began with the corpus that is there, .*{told}"):
            prepare_again(**second)
    assert contents(run.path) == before
