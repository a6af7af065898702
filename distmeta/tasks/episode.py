"""What a task is: a few classes, labelled support examples to adapt on, and query examples to score."""

import hashlib
import json
from dataclasses import dataclass

from distmeta.tasks.config import Split


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text. `label` is its class's number in this task alone and means nothing outside it."""

    row: str
    label: int
    text: str
    input_ids: tuple[int, ...]
    """Token ids with special tokens, at most `tokenizer.max_length`."""
    mask_position: int
    """Position in `input_ids` of the first mask that hides the class word; -1 where nothing is hidden."""
    pair: str | None = None
    """The second text, where examples are pairs."""

    @property
    def shown(self) -> str:
        """All of its text: a pair's second below the first."""
        return self.text if self.pair is None else f"{self.text}\n{self.pair}"


@dataclass(frozen=True, slots=True)
class Task:
    """An N-way K-shot task (an episode)."""

    index: int
    split: Split
    classes: tuple[str, ...]
    """Class name by label."""
    support: tuple[Example, ...]
    query: tuple[Example, ...]
    source: str = ""
    """Name of the dataset that it was drawn from; "" of one without a name."""

    @property
    def n_way(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that name the content: classes by label and rows, whatever their order."""
        content: list[object] = [
            *([self.source] if self.source else []),
            list(self.classes),
            sorted([example.label, example.row] for example in self.support),
            sorted([example.label, example.row] for example in self.query),
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, object]:
        """The task as people and scripts read it: `index`, `split`, `source` where it has a name, `classes`,
        `support`, `query`, `digest`."""

        def rows(examples: tuple[Example, ...]) -> list[dict[str, object]]:
            keys = ("row", "label", "text", "pair")
            return [
                {key: value for key in keys if (value := getattr(example, key)) is not None} for example in examples
            ]

        return {
            "index": self.index,
            "split": self.split,
            **({"source": self.source} if self.source else {}),
            "classes": list(self.classes),
            "support": rows(self.support),
            "query": rows(self.query),
            "digest": self.digest,
        }

    def as_text(self) -> str:
        """The task as people read it: the classes, and under each its support and query texts."""
        source = f" from {self.source}" if self.source else ""
        lines = [f"task {self.index} of meta-{self.split}{source}, {self.n_way}-way ({self.digest})"]
        for label, name in enumerate(self.classes):
            lines.append(f"  {label}: {name}")
            for kind, examples in (("support", self.support), ("query", self.query)):
                shown = (example.shown.replace("\n", f"\n{'':13}") for example in examples if example.label == label)
                lines += [f"     {kind:<7} {text}" for text in shown]
        return "\n".join(lines)
