"""The name of a class as one more of its support examples, as people give classes names that say what they are."""

import re
from pathlib import Path

from distmeta.corpus.encoder import load_encoder
from distmeta.tasks.episode import Example

PLACE = "{}"
"""Stands for the name in a template."""
PLAIN = PLACE
"""The template of the name alone."""
_BETWEEN_WORDS = re.compile(r"[\s_\-./:]+")


def name_text(template: str, name: str) -> str:
    """The text that stands for a class: underscores and the like in its name are spaces between words."""
    return template.replace(PLACE, _BETWEEN_WORDS.sub(" ", name).strip() or name)


class NameExamples:
    """Makes an example of a class's name.

    Args:
        template: of the text, with {} for the name.
        tokenizer: folder of the tokenizer.
        max_length: longest text (tokens).
    """

    def __init__(self, template: str, tokenizer: Path, max_length: int) -> None:
        self._template, self._max_length = template, max_length
        self._encoder = load_encoder(tokenizer)

    def example(self, name: str, label: int) -> Example:
        """The example with a label; its row is `name:` and the name."""
        text = name_text(self._template, name)
        room = self._max_length - self._encoder.special_tokens
        (ids,) = self._encoder.encode([text])
        tokens = (*self._encoder.prefix, *ids[:room], *self._encoder.suffix)
        return Example(f"name:{name}", label, text, tokens, -1)
