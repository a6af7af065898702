"""Which classes a network takes for which, where it has to tell all of them apart: by prototype."""

from collections import Counter
from collections.abc import Mapping, Sequence

from distmeta.corpus.executor import Executor
from distmeta.evaluate.baselines import nearest_prototype
from distmeta.evaluate.config import EvaluateConfig
from distmeta.evaluate.episodes import Texts, draw_episodes
from distmeta.evaluate.features import compute_features
from distmeta.evaluate.networks import ScoredNetwork
from distmeta.setup import Setup

EPISODES = 20
POOL_TEXTS = 1000
"""Of each data set: what the texts of all episodes are drawn from."""

Confusion = Mapping[tuple[str, str], int]
"""How many texts of a class were taken for a class."""


def confusion(network: ScoredNetwork, setup: Setup, options: EvaluateConfig, executor: Executor) -> Confusion:
    """That of all classes of the split that `options` name, with as many shots as they ask for; of several data sets
    each by itself, with its name before those of its classes."""
    source = setup.tasks(
        options.split,
        n_way="all",
        k_shot=options.k_shot,
        query_per_class=options.query_per_class,
        seed=options.seed,
        in_turn=True,
        pool_texts=POOL_TEXTS,
        class_names=options.class_names,
    )
    texts = Texts()
    drawn = draw_episodes(source, source.whole_turns(EPISODES), texts)
    values = compute_features(network, network.encode(texts.examples), executor).values
    are_several = len({episode.source for episode in drawn}) > 1
    counts: Counter[tuple[str, str]] = Counter()
    for episode in drawn:
        names = [f"{episode.source}: {name}" if are_several else name for name in episode.classes]
        labels = episode.support_labels
        found = nearest_prototype(values[episode.support], labels, values[episode.query], episode.n_way)
        counts.update((names[own], names[other]) for own, other in zip(episode.query_labels, found, strict=True))
    return counts


def by_class(found: Confusion) -> Sequence[tuple[str, int, float, str, float]]:
    """Of each class its texts, the share that was told, for which class most of the others were taken, and their share;
    the class that is told worst comes first. Where all were told, that class is ""."""
    rows = []
    for name in {own for own, _ in found}:
        taken = Counter({other: texts for (own, other), texts in found.items() if own == name})
        total, right = taken.total(), taken.pop(name, 0)
        ((other, texts),) = taken.most_common(1) or [("", 0)]
        rows.append((name, total, right / total, other, texts / total))
    return sorted(rows, key=lambda row: (row[2], row[0]))
