"""What training was paid with: how well a network still tells how alike two texts mean, without any training for it.

For each group of pairs, Pearson's correlation of the cosine of the two texts' mean features with the score that people
gave (as in SemEval's tasks on semantic textual similarity, Agirre et al. 2012), and the mean over the groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distmeta.corpus.executor import Executor
from distmeta.corpus.readers import read_piece
from distmeta.corpus.records import Dropped, RecordSettings, Tally
from distmeta.corpus.sources import resolve_sources
from distmeta.errors import UserError, one_line
from distmeta.evaluate.features import compute_features
from distmeta.evaluate.networks import ScoredNetwork
from distmeta.tasks.episode import Example

TEXT_A, TEXT_B, SCORE, GROUP = "text_a", "text_b", "score", "group"
KEY = "evaluate.similarity"


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of texts of one group."""

    texts: list[tuple[str, str]]
    scores: list[float]


def read_pairs(path: str, most: int | None) -> dict[str, Pairs]:
    """The first `most` pairs of each group in a file (all where it is None), by group; of a file without a column
    `group` all are one, "".

    Raises:
        UserError: it cannot be read, lacks a column, or has a score that is no number or a group whose scores are all
            the same, in which nothing goes with anything.
    """
    rows = _column(path, SCORE)
    if not rows:
        raise UserError(f"{KEY}: {path}: there are no pairs in it")
    try:
        names = {number: name for number, (_, _, name) in _column(path, GROUP).items()}
    except UserError as error:
        if f"has no column '{GROUP}'" not in str(error):
            raise
        names = {}
    groups: dict[str, Pairs] = {}
    for number, (first, second, score) in rows.items():
        pairs = groups.setdefault(names.get(number, ""), Pairs([], []))
        if most is not None and len(pairs.scores) == most:
            continue
        try:
            pairs.scores.append(float(score))
        except ValueError:
            raise UserError(f"{KEY}: {path}: row {number}: {SCORE} must be a number, got {score!r}") from None
        pairs.texts.append((first, second))
    for name, pairs in groups.items():
        if len(set(pairs.scores)) < 2 or not np.isfinite(pairs.scores).all():
            which = f"the group {name}" if name else "all pairs together"
            raise UserError(f"{KEY}: {path}: {which} must have scores that are numbers and differ; leave it out")
    return groups


def _column(path: str, column: str) -> dict[int, tuple[str, str, str]]:
    """Both texts and another column of each row, by its number.

    Raises:
        UserError: the file, or a row of it, cannot be read, or has no such column.
    """
    tally = Tally()
    settings = RecordSettings("line", "none", False, 10_000_000, TEXT_A, TEXT_B, column)
    try:
        (piece,) = resolve_sources([path]).files
    except ValueError:
        raise UserError(f"{KEY}: {path}: give one file") from None
    except UserError as error:
        raise UserError(str(error).replace("corpus.sources", KEY)) from None
    rows = {}
    wrong: list[str] = []
    for record in read_piece(piece, settings, tally):
        if isinstance(record, Dropped):
            wrong.append(f"row {record.number}: {record.reason} {record.detail}".strip())
        elif not (record.text and record.pair and record.label):
            wrong.append(f"row {record.number}: {TEXT_A}, {TEXT_B} and {column} must all be there")
        else:
            rows[record.number] = (record.text, record.pair, record.label)
    if problems := [*tally.problems, *wrong]:  # of the whole file first, such as a column that no row has
        raise UserError(one_line(f"{KEY}: {path}: {problems[0]}"))
    return rows


def measure_similarity(
    networks: Sequence[ScoredNetwork],
    path: str,
    groups: dict[str, Pairs],
    executor: Executor,
    *,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """The content of `similarity` in evaluation.json: `file`, the number of `pairs` by group, and `networks`: of each
    `mean` and, by group, `groups`, from -1 to 1. What is not defined, since a network gives all pairs of a group the
    same cosine, is absent, and so is then the mean.

    Args:
        networks: those that are measured.
        path: the file.
        groups: what `read_pairs` returned of it.
        executor: where it is computed.
        is_stopped: whether to end.

    Raises:
        Interrupted: `is_stopped` said so.
    """
    return {
        "file": path,
        "pairs": {name: len(pairs.scores) for name, pairs in groups.items()},
        "networks": {each.name: _measure(each, groups, executor, is_stopped) for each in networks},
    }


def _measure(
    network: ScoredNetwork, groups: dict[str, Pairs], executor: Executor, is_stopped: Callable[[], bool]
) -> dict[str, Any]:
    meaning = network.with_mean_features()
    texts = [text for pairs in groups.values() for both in pairs.texts for text in both]
    tokens = meaning.encode([Example("", 0, text, (), -1) for text in texts])
    features = compute_features(meaning, tokens, executor, None, is_stopped).values
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = (features[0::2] * features[1::2]).sum(1)
    found, first = {}, 0
    for name, pairs in groups.items():
        own = cosines[first : first + len(pairs.scores)]
        first += len(own)
        if np.ptp(own) > 0:
            found[name] = float(np.corrcoef(own, pairs.scores)[0, 1])
    whole = {"mean": float(np.mean(list(found.values())))} if len(found) == len(groups) else {}
    return whole | {"groups": found}
