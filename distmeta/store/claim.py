"""Who writes at an address: one process at a time, whichever machine it is on. See `distmeta.ownership` for disks.

A storage has no locks. The owner says who it is in one object and beats in another; whoever finds both waits to see
the second change. One that has been silent for long is taken over: it notices before it writes again, and ends.
"""

import json
import secrets
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distmeta.errors import UserError

if TYPE_CHECKING:
    import pyarrow.fs

OWNER, BEAT = ".owner.json", ".beat.json"

HEARTBEAT = 5.0
"""Seconds between two beats."""

SETTLE = 1.5
"""Seconds after which it is seen which of two that claimed at the same time has it: a write takes less."""

EXPIRY = 60.0
"""Seconds without a beat after which an owner is taken for lost."""


class Claim:
    """What this process, or the driver that it works for, says of an address.

    Args:
        filesystem: the storage.
        path: of the folder in it.
        shown: its address, for messages.
    """

    def __init__(self, filesystem: "pyarrow.fs.FileSystem", path: str, shown: str) -> None:
        self._filesystem, self._path, self._shown = filesystem, path, shown
        self.token: str | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def refuse_living(self, say: Callable[[str], None]) -> None:
        """Waits until it is known that nobody who lives has claimed the address.

        Raises:
            UserError: somebody who beats has.
        """
        owner, beat, since = self._read(OWNER), self._read(BEAT), time.monotonic()
        if owner is None or owner.get("token") == self.token:
            return
        while time.monotonic() - since < EXPIRY:
            if self._read(OWNER) is None:
                return
            if (now := self._read(BEAT)) != beat and now is not None:
                raise UserError(
                    f"{self._shown}: {owner.get('who', 'another process')} is writing there; wait for its end, or give "
                    "another folder"
                )
            if time.monotonic() - since > 2 * HEARTBEAT and say is not _silent:
                say(f"{self._shown}: {owner.get('who')} gives no sign; waiting up to {EXPIRY:.0f} s")
                say = _silent
            time.sleep(HEARTBEAT / 5)

    def take(self, who: str, say: Callable[[str], None], lost: Callable[[str], None]) -> None:
        """Claims the address, and beats until `release`. Raises OSError where the storage does not answer.

        Args:
            who: names this process to whoever else comes.
            say: is told what is waited for.
            lost: called, once, from another thread, where another process has taken the address over.

        Raises:
            UserError: see `refuse_living`; or another process claimed it at the same time.
        """
        self.refuse_living(say)
        self.token = secrets.token_hex(8)
        self._write(OWNER, {"token": self.token, "who": who})
        self._write(BEAT, {"token": self.token, "beat": 0})
        time.sleep(SETTLE)
        owner = self._read(OWNER) or {}
        if owner.get("token") != self.token:
            self.token = None
            raise UserError(f"{self._shown}: {owner.get('who', 'another process')} has just begun to write there")
        self._over.clear()
        self._thread = threading.Thread(target=self._beat, args=(lost,), daemon=True, name="distmeta-claim")
        self._thread.start()

    def release(self) -> None:
        """Gives the address back."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.token is not None and self.is_held():
            for name in (OWNER, BEAT):
                self._filesystem.delete_file(f"{self._path}/{name}")
        self.token = None

    def is_held(self) -> bool:
        """Whether the address is still this claim's. Raises OSError where the storage does not answer."""
        owner = self._read(OWNER)
        return owner is not None and owner.get("token") == self.token

    def owner_token(self) -> str | None:
        """What tells the present owner from others; None: there is none. Raises OSError as above."""
        owner = self._read(OWNER)
        return None if owner is None else owner.get("token")

    def _beat(self, lost: Callable[[str], None]) -> None:
        count = 0
        while not self._over.wait(HEARTBEAT):
            count += 1
            try:
                if not self.is_held():
                    owner = self._read(OWNER) or {}
                    lost(str(owner.get("who", "another process")))
                    return
                self._write(BEAT, {"token": self.token, "beat": count})
            except OSError:
                continue  # when the storage answers again it is seen whose the address is

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            with self._filesystem.open_input_stream(f"{self._path}/{name}") as stream:
                found = json.loads(stream.read())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, name: str, content: dict[str, Any]) -> None:
        with self._filesystem.open_output_stream(f"{self._path}/{name}") as stream:
            stream.write(json.dumps(content).encode())


def _silent(text: str) -> None:
    pass
