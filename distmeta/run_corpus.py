"""The corpus of a run: prepared where it is missing, and left as it is where a run has begun with it."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from distmeta.config import Config, load_config
from distmeta.corpus.executor import Executor
from distmeta.corpus.manifest import Manifest
from distmeta.corpus.parts import digest
from distmeta.corpus.prepare import OTHER_VERSION, prepare, total_bytes
from distmeta.errors import UserError
from distmeta.files import write_text
from distmeta.impossible import missing_files
from distmeta.ownership import own
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, corpus_directory
from distmeta.store.address import names_storage
from distmeta.store.folders import address_of, given, looked_at
from distmeta.tasks.config import SPLITS, Split

Say = Callable[[str], None]

LOCAL_BYTES = 8_000_000
"""Below this size `corpus.executor: auto` works in this process: a cluster takes longer to start than the work."""

USERS = "used-by"
"""The folder of a prepared corpus in which the runs that began with it are named."""


@dataclass(frozen=True)
class Beginning:
    """What a run began with, by its names."""

    corpus: str
    """Its manifest's `content_digest`."""
    tokenizer: str | None
    """Its manifest's `tokenizer_hash`."""


def beginning(run: RunDirectory) -> Beginning | None:
    """What a run began with; None where no run has begun.

    Raises:
        UserError: the file that says so is damaged.
    """
    if not run.has_begun:
        return None
    try:
        found = json.loads(run.environment.read_text(encoding="utf-8"))
        return Beginning(found["corpus"], found.get("tokenizer"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run.environment}: cannot be read, and says what the run began with: {error}") from None


def refuse_another(manifest: Manifest, run: RunDirectory) -> None:
    """Raises UserError where a run began with another corpus than the one described."""
    began = beginning(run)
    if began is not None and began.corpus != manifest.content_digest:
        raise UserError(f"{run.path}: the corpus is not the one that this run began with; give another --run-dir")


def note_use(corpus: Path, run: RunDirectory) -> None:
    """Names a run among those that began with a corpus, where that may be written in."""
    if _is_its_own(corpus, run):
        return
    if address_of(run.path) or address_of(corpus):
        name = given(run.path)
    else:  # as it is seen from the corpus, so that a folder with both in it can be moved
        name = os.path.relpath(run.path, corpus.resolve())
    file = corpus / USERS / digest(name)
    if not file.exists() and os.access(corpus, os.W_OK):
        write_text(file, f"{name}\n")


def is_large(config: Config, run: RunDirectory) -> bool:
    """Whether the corpus is to be prepared on a cluster.

    Raises:
        UserError: the sources are not there, and no run began with what is prepared.
    """
    wanted = config.corpus.executor
    if wanted != "auto" or _without_sources(config, run) is not None:
        return wanted == "ray"
    return total_bytes(config.corpus) > LOCAL_BYTES


def prepare_with(
    executor: Executor, config: Config, run: RunDirectory, say: Say, splits: tuple[Split, ...] | None = None
) -> None:
    """Prepares the corpus of a run by a given executor, where it is not yet prepared.

    What a run began with stays: it is used also where its sources are gone, and refused where they have changed.

    Raises:
        UserError: one of `splits` has too few classes (unset: those that training and evaluation need), another
            process writes there, or a run began with another corpus.
    """
    directory = corpus_directory(config, run)
    found = _without_sources(config, run)
    if found is not None:
        manifest, missing = found
        say(f"{missing}: going on with the corpus that is prepared in {directory}")
    else:
        try:
            manifest = _prepare(executor, config, run, _needed_splits(config) if splits is None else splits)
        except _AsItIs as as_it_is:
            manifest = as_it_is.manifest
            say(f"{directory}: {OTHER_VERSION}: going on with it as it is")
    refuse_another(manifest, run)
    say(manifest.describe())


class _AsItIs(Exception):
    """The corpus that is there is the one to go on with."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self.manifest = manifest


def _prepare(executor: Executor, config: Config, run: RunDirectory, splits: tuple[Split, ...]) -> Manifest:
    directory = corpus_directory(config, run)
    was_there = directory.exists()
    with ExitStack() as stack:

        def before_writing(standing: Manifest | None, changes: list[str]) -> None:
            if standing is not None:
                _refuse_to_replace(standing, changes, directory, run)
            stack.enter_context(own(run.path if _is_its_own(directory, run) else directory))
            if Manifest.load_whole(directory) != standing:
                raise UserError(f"{directory}: another process has just prepared a corpus there; try again")

        def before_publishing(manifest: Manifest) -> None:
            try:
                refuse_another(manifest, run)
            except UserError:
                if not was_there:
                    shutil.rmtree(directory, ignore_errors=True)
                raise

        return prepare(
            directory,
            config.corpus,
            config.tokenizer,
            config.tasks,
            tokenizer_source=config.tokenizer.name_or_path or config.model.name_or_path,
            max_length=config.tokenizer.max_length,
            executor=executor,
            splits=splits,
            before_writing=before_writing,
            before_publishing=before_publishing,
        )


@dataclass(frozen=True)
class OwnSetup:
    """The parts of a run that has kept a network, and what their corpus is to it."""

    setup: Setup
    is_of_the_run: bool
    """Whether the corpus is the one that the run began with."""
    trained: Setup | None
    """The parts with the corpus that the run began with; None where that is not there any more."""


def own_setup(config: Config, run: RunDirectory) -> OwnSetup:
    """The parts of a run that has kept a network.

    Raises:
        UserError: the corpus is not there, or its tokenizer is not the network's.
    """
    setup = Setup(config, run)
    began, manifest = beginning(run), setup.manifest
    # The same corpus has the same tokenizer.
    if began is not None and began.corpus == manifest.content_digest:
        return OwnSetup(setup, True, setup)
    if began is None or began.tokenizer != manifest.tokenizer_hash:
        raise UserError(
            f"{setup.corpus}: the corpus has another tokenizer than the network in {run.path} was trained with, whose "
            "token ids would mean nothing there: give the run's own corpus.directory, or prepare the other corpus with "
            f"tokenizer.name_or_path {run.model}"
        )
    before = load_config(run.config, check=False)
    standing = Manifest.load_whole(corpus_directory(before, run))
    is_there = standing is not None and standing.content_digest == began.corpus
    return OwnSetup(setup, False, Setup(before, run) if is_there else None)


def check_tasks(config: Config, run: RunDirectory) -> None:
    """Draws one task of each kind that the run will need, so that what cannot be drawn is told now."""
    setup = Setup(config, run)
    setup.tasks("train").check()
    if config.train.validates:
        setup.tasks("valid").check()
    setup.evaluation_tasks().check()


def _without_sources(config: Config, run: RunDirectory) -> tuple[Manifest, str] | None:
    """Where sources are gone: the corpus that was made of them, if this run began with it, and what is missing.

    Raises:
        UserError: they are gone and there is no such corpus.
    """
    gone = list(missing_files(config))
    directory = corpus_directory(config, run)
    standing = Manifest.load_whole(directory)
    if standing is None or not _has_used(run, _users(directory, run, standing)):
        if gone:
            raise UserError("\n".join(gone))
        return None
    if not gone:
        try:
            total_bytes(config.corpus)
        except UserError as error:
            gone = str(error).splitlines()
    return (standing, "; ".join(gone)) if gone else None


def _users(directory: Path, run: RunDirectory, standing: Manifest) -> list[str]:
    """The paths and addresses of the runs that began with a corpus and are still there."""
    found = [given(run.path)]
    for file in sorted(directory.glob(f"{USERS}/*")):
        name = file.read_text(encoding="utf-8").rstrip("\n")
        found.append(name if names_storage(name) else str((directory.resolve() / name).resolve()))
    began = ((name, beginning(run if name == found[0] else _user(name))) for name in dict.fromkeys(found))
    return [name for name, each in began if each is not None and each.corpus == standing.content_digest]


def _user(name: str) -> RunDirectory:
    """Another run; at an address without what is not needed to see what it began with."""
    if names_storage(name):
        return RunDirectory(looked_at(name, "corpus.directory", ("config.yaml", "environment.json", "metrics.jsonl")))
    return RunDirectory(Path(name))


def _refuse_to_replace(standing: Manifest, changes: Sequence[str], directory: Path, run: RunDirectory) -> None:
    users = _users(directory, run, standing)
    if changes == [OTHER_VERSION] and _has_used(run, users):
        raise _AsItIs(standing)
    if users:
        others = f" and {len(users) - 1} other runs" if len(users) > 1 else ""
        raise UserError(
            f"{directory}: {users[0]}{others} began with the corpus that is there, and now it would be another "
            f"({'; '.join(changes)}): put that back, or give another "
            f"{'--run-dir' if _is_its_own(directory, run) else 'corpus.directory'}"
        )
    refuse_another(standing, run)


def _has_used(run: RunDirectory, users: Sequence[str]) -> bool:
    """Whether a run is among those; of a sweep it is the trials that began."""
    own = given(run.path)
    return any(user == own or user.startswith(f"{own}/") for user in users)


def _is_its_own(corpus: Path, run: RunDirectory) -> bool:
    """Whether a corpus is kept within the directory of the run."""
    return corpus.resolve().is_relative_to(run.path)


def _needed_splits(config: Config) -> tuple[Split, ...]:
    needed = {"train", config.evaluate.split} | ({"valid"} if config.train.validates else set())
    return tuple(split for split in SPLITS if split in needed)
