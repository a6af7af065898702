"""The run in Weights & Biases: one, however many workers and resumes, and never in training's way."""

import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distmeta.tracking.config import TrackingConfig
from distmeta.tracking.wandb_environment import (
    MODES,
    Mode,
    directory,
    mode_of_environment,
    names,
    prepare_environment,
    tags_of_user,
)
from distmeta.tracking.wandb_file import last_logged_step
from distmeta.tracking.wandb_place import mark_unsent, unsent_marks, write_state

logger = logging.getLogger(__name__)

# Seconds that a server which does not answer can cost: once at the start, once at the end.
INIT_TIMEOUT = 10.0
FINISH_TIMEOUT = 30.0

# Seconds for which rows that were logged may be in memory only, where a SIGKILL would lose them to W&B (whose own
# choice is 15).
FLUSH_INTERVAL = 1.0

SEND_INTERVAL = 5
"""Whole seconds between two messages to a server with the rows logged meanwhile; W&B's own choice is 15."""

HIDDEN = ("training/tokens", "training/inner_lr", "time/data_wait_fraction")
"""Metrics that say the same at every step, or the same as another: there, but without a panel."""
GOALS = {
    "training/query_loss": "min",
    "training/query_accuracy": "max",
    "training/lm_loss": "min",
    "validation/inner-loop": "max",
    "validation/prototype": "max",
    "validation/logistic-regression": "max",
}
"""Metrics of which the summary has the best value beside the last one."""

GAVE_UP = b"filestream: fatal error"
"""What stands in the log of W&B's process where it stopped sending rows, which no call of its client tells."""

# What W&B would record by itself: command line, program, host, git remote, packages, console, use of the machine.
NOTHING_BY_ITSELF: dict[str, Any] = {
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "console": "off",
    "host": "",
}


class WandbRun:
    """A run in Weights & Biases, its files in `run_dir/wandb` or WANDB_DIR. Only the worker of rank 0 makes one.

    `run_dir/wandb.json` keeps the run's id and where it is, so that a resumed run goes on in the same W&B run, behind
    the last step that is there: in the files of this disk, or at the server. Without a network, each resume leaves a
    folder `wandb/offline-run-*` of the same id; `wandb sync` puts them together.

    Nothing that W&B does can stop training: a server that does not answer makes the run an offline one, any other
    failure ends the logging, and either is said once. What a server has not taken at the end is in the files of this
    disk, which are marked.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        settings: Mapping[str, Any] | None,
        *,
        tags: Sequence[str] = (),
        job_type: str | None = None,
    ) -> None:
        """Records the resolved configuration, nested, in `settings`, without the passwords in its addresses. With None
        something is added to the run that is there; where none is, none is made, and nothing is recorded. `tags` are
        added to those that it has. `job_type` says what it is if neither a run nor a trial."""
        self.where = ""
        """The run's web address, or the folder of one that is offline or not all at the server, or "" where nothing is
        recorded."""
        self._run: Any = None
        self._state_file = run_dir / "wandb.json"
        self._logged = -1
        # W&B's own error reports would go over the network, and hold the process for 20 s where no server answers.
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        more = {} if job_type is None else {"job_type": job_type}
        self._guard(lambda: self._start(run_dir, config, settings, list(tags), more))

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs metrics rows, in order: numbers as they are, a list of numbers as `key/1`, `key/2`...

        Rows at or below the last step logged are skipped: a step that is computed again, after its worker was lost, has
        the same losses. So it is right to pass again all that a checkpoint covers, and needed after a crash: what was
        logged in the second before it may be lost.
        """
        rows = [row for row in rows if row["outer_step"] > self._logged]
        if self._run is None or not rows:
            return
        self._logged = rows[-1]["outer_step"]
        self._guard(lambda: self._log(rows))

    @property
    def is_recording(self) -> bool:
        """Whether what is given is recorded."""
        return self._run is not None

    def summary(self, values: Mapping[str, Any]) -> None:
        """Sets figures of the whole run; nested ones appear as `outer.inner`. Tables and pages of W&B are values too.
        Those that are there already stay, but for those of the same names."""
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(dict(values)))

    def finish(self) -> None:
        """Ends the run. Waits for its upload FINISH_TIMEOUT seconds at most; the rest stays in the run directory."""
        if self._run is not None:
            self._guard(self._finish)
            self._run = None

    def _start(
        self,
        run_dir: Path,
        config: TrackingConfig,
        settings: Mapping[str, Any] | None,
        added: list[str],
        more: dict[str, str],
    ) -> None:
        mode = mode_of_user(config)
        if mode == "disabled" or (settings is None and not self._state_file.exists()):
            return
        import wandb  # half a second, which nobody should wait where W&B is disabled

        before: dict[str, Any] = {}
        if self._state_file.exists():
            before = json.loads(self._state_file.read_text())
            run_id = before["run_id"]
        else:
            run_id = secrets.token_hex(6)
            write_state(run_dir, {"run_id": run_id})
        own_tags = list(dict.fromkeys([*(before.get("tags") or tags_of_user(config)), *added]))
        folder = directory(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # A table is kept here until it is uploaded; W&B's own choice is a folder of the user.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))

        def start(mode: Mode) -> Any:
            return wandb.init(
                mode=mode,
                id=run_id,
                resume="allow",
                **(names(config, run_dir) | more),
                tags=own_tags,
                dir=str(folder),
                config=None if settings is None else without_passwords(settings),
                settings=quiet_settings(FINISH_TIMEOUT, finish_timeout_raises=True),
            )

        if mode == "online" and not has_login():
            mode = "offline"
            logger.warning(
                "W&B: online was asked for but there is no login (WANDB_API_KEY or `wandb login`); recording offline"
            )
        if mode == "online":
            try:
                self._run = start("online")
            except Exception as error:
                logger.warning("W&B: the server cannot be used (%s); recording offline", first_line(error))
                # Frees the run's id, which the failed attempt still holds.
                wandb.teardown(exit_code=1)
                mode = "offline"
        if mode == "offline":
            # Of an earlier part that was online, too: what its server did not get is in its file.
            self._logged = last_logged_step(folder, f"*run-*-{run_id}")
            for part in (folder / "wandb").glob(f"run-*-{run_id}"):
                if last_logged_step(folder, part.name) >= 0:
                    mark_unsent(part)
            self._run = start("offline")
        else:
            # Where the run is resumed its next step is the server's last one and one more.
            self._logged = max(last_logged_step(folder, f"offline-run-*-{run_id}"), self._run.starting_step - 1)
            if settings is not None:  # all that the server lacks is logged again
                for mark in unsent_marks(folder, run_id):
                    mark.unlink()
        self.where = self._run.url if mode == "online" else str(Path(self._run.dir).parent)
        url = self._run.url if mode == "online" else before.get("url")
        state = {"run_id": run_id, "url": url, "tags": own_tags}
        write_state(run_dir, state | ({} if folder == run_dir else {"directory": str(folder)}))
        # W&B's own step starts again at 0 in each offline part of a run, so every chart goes by ours.
        self._run.define_metric("outer_step", hidden=True)
        self._run.define_metric("*", step_metric="outer_step")
        self._run.define_metric("sweep/*", step_metric="sweep/worker_seconds")
        for name in HIDDEN:
            self._run.define_metric(name, step_metric="outer_step", hidden=True)
        for name, goal in GOALS.items():
            self._run.define_metric(name, step_metric="outer_step", summary=f"{goal},last")

    def _finish(self) -> None:
        folder, log = Path(self._run.dir).parent, Path(self._run.settings.log_internal)
        try:
            self._run.finish(exit_code=0)
            is_sent = not log.exists() or GAVE_UP not in log.read_bytes()
        except TimeoutError:
            is_sent = False
        if not is_sent:
            mark_unsent(folder)
            self.where = str(folder)

    def _log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            # Giving the step as well keeps the parts of an offline run from overlapping when they are put together.
            self._run.log(_numbers(row), step=row["outer_step"], commit=True)

    def _guard(self, action: Callable[[], object]) -> None:
        """Does it; where W&B fails, says so once and ends the logging."""
        try:
            action()
        except Exception as error:
            self._run = None
            self.where = ""
            logger.warning("W&B: %s; nothing more is logged there, and metrics.jsonl has it all", first_line(error))


def best_and_last(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What the summary has of the metrics in GOALS, over all parts of a run: W&B goes by the rows of the last one."""
    found: dict[str, dict[str, float]] = {}
    for name, goal in GOALS.items():
        values = [row[name] for row in rows if name in row]
        if values:
            found[name] = {goal: min(values) if goal == "min" else max(values), "last": values[-1]}
    return found


def quiet_settings(finish_timeout: float, **more: Any) -> Any:
    """Settings of a W&B run that records nothing by itself, says nothing, and waits for no server for long."""
    import wandb

    return wandb.Settings(
        silent=True,
        init_timeout=INIT_TIMEOUT,
        finish_timeout=finish_timeout,
        x_graphql_retry_max=2,
        x_transaction_log_flush_interval=FLUSH_INTERVAL,
        x_file_stream_transmit_interval=SEND_INTERVAL,
        allow_val_change=True,  # a resumed run may have other workers, or more steps
        **NOTHING_BY_ITSELF,
        **more,
    )


def mode_of_user(config: TrackingConfig) -> Mode:
    """What the configuration and the environment ask for; where they differ, the more private of the two.

    Where neither says anything, online if there is a login, else offline.

    Raises:
        UserError: WANDB_MODE is none that there is.
    """
    prepare_environment()
    from_most_private: tuple[Mode, ...] = ("disabled", "offline", "online")
    wishes = [MODES.get(config.wandb), mode_of_environment()]
    for mode in from_most_private:
        if mode in wishes:
            return mode
    return "online" if has_login() else "offline"


def has_login() -> bool:
    """Whether W&B finds credentials for its server: in the environment, a netrc file or its settings. Never asks."""
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        host = wandb.setup().settings.base_url
        found = wbauth.authenticate_session(host=host, source="distmeta", prompt=False, update_session=False)
    except wandb.Error as error:
        logger.warning("W&B: the login cannot be used (%s)", first_line(error))
        return False
    return found is not None


def without_passwords(settings: Any) -> Any:
    """The same tree with user names and passwords removed from addresses such as `s3://key:secret@bucket`."""
    if isinstance(settings, Mapping):
        return {key: without_passwords(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [without_passwords(value) for value in settings]
    if isinstance(settings, str):
        return re.sub(r"(?<=://)[^/@\s]+@", "", settings)
    return settings


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, int | float):
            numbers[key] = value
        elif isinstance(value, list) and all(isinstance(item, int | float) for item in value):
            numbers |= {f"{key}/{position}": item for position, item in enumerate(value, start=1)}
    return numbers


def first_line(error: Exception) -> str:
    """What an error says first, without passwords."""
    return without_passwords(f"{type(error).__name__}: {error}".splitlines()[0])
