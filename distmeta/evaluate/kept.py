"""The evaluations of a run, each in a file of its own, and the episodes of those that were stopped."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distmeta.files import write_json, write_text

UNFINISHED = "unfinished"
"""The folder, beside evaluations, of features that one which was stopped has computed."""

Score = dict[str, float]
"""The scores of a method on an episode: accuracy, precision, recall, f1, adapt_seconds, and accuracy_before if any."""


class KeptEvaluation:
    """An evaluation in a folder, under a name that says what it is of.

    Args:
        folder: where the evaluations are.
        name: what is evaluated, for people.
        identity: a hash of all that the outcome depends on. Another evaluation of that name is left alone.
    """

    def __init__(self, folder: Path, name: str, identity: str) -> None:
        self._identity = identity
        self.file = folder / f"{name}.json"
        if self.file.exists() and read_identity(self.file) != identity:
            self.file = folder / f"{name}_{identity[:8]}.json"
        self._episodes = folder / f"{self.file.stem}.stopped.jsonl"

    def scores(self) -> dict[str, list[Score]]:
        """What is scored already: of each method, the first episodes in order. To be asked for before more is added."""
        rows = self._read()
        if rows[:1] != [{"identity": self._identity}]:
            rows = [{"identity": self._identity}]
        self._write(rows)
        scores: dict[str, list[Score]] = {}
        for row in rows[1:]:
            scores.setdefault(row["method"], []).extend(row["scores"])
        return scores

    def add(self, method: str, scores: Sequence[Score]) -> None:
        """Keeps a method's scores of the next episodes."""
        with self._episodes.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"method": method, "scores": scores}) + "\n")

    def finish(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the evaluation down, and returns what is written."""
        written = {"identity": self._identity, **report}
        write_json(self.file, written)
        self._episodes.unlink(missing_ok=True)
        return written

    def _read(self) -> list[Any]:
        """What was kept, up to what a process left half-written when it was killed."""
        rows: list[Any] = []
        if self._episodes.exists():
            for line in self._episodes.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    break
        return rows

    def _write(self, rows: list[Any]) -> None:
        write_text(self._episodes, "".join(json.dumps(row) + "\n" for row in rows))


def read_identity(file: Path) -> str | None:
    """The identity of the evaluation in a file; None where it has none or cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found.get("identity") if isinstance(found, dict) else None
    except (OSError, ValueError):
        return None


def other_corpus(report: Mapping[str, Any]) -> list[str]:
    """A line about the corpus, where it is not the one that the network was trained on."""
    corpus = report.get("corpus")
    if not corpus or corpus["is_of_the_run"]:
        return []
    unknown = "" if report.get("overlap") else ", of which it is not known whether the network was trained on it"
    return [f"another corpus than the run's, {corpus['directory']}{unknown}"]
