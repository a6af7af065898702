"""The tokenizer of a corpus, loaded: always fast, and always with pad and mask tokens."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from distmeta.corpus.parts import Part, digest, file_digest, make_part
from distmeta.errors import UserError
from distmeta.library_warnings import warnings_of_transformers
from distmeta.packages import local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

STEP = "tokenizer"
_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "config.json",
)


def import_tokenizer(source: str, max_length: int, work: Path) -> Part:
    """Return a part with the tokenizer of a folder, hub name or installed package.

    Its limit is set to `max_length` tokens. Where it has no pad or mask token, it gets `[PAD]` and `[MASK]`. The part
    holds a folder that `AutoTokenizer.from_pretrained` loads; its summary `hash` and `tokens_added`.
    Raises UserError where there is no fast tokenizer.
    """
    identity = [tokenizer_identity(source), max_length]
    return make_part(
        work / STEP, identity, lambda target: save_tokenizer(load_source(source, quietly=True), max_length, target)
    )


def tokenizer_identity(source: str) -> object:
    """Return what determines a tokenizer: the content of its folder's files, or its name on the hub."""
    folder = Path(local_folder(source, "tokenizer"))
    files = sorted({file for pattern in _FILES for file in folder.glob(pattern)}) if folder.is_dir() else []
    return [[file.name, file_digest(file)] for file in files] or source


def load_source(source: str, *, quietly: bool = False) -> "PreTrainedTokenizerFast":
    """The tokenizer of a folder, hub name or installed package.

    What transformers warns of is passed on, unless it is loaded `quietly`.

    Raises:
        UserError: there is none, none that is fast, or one that knows no word.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    mend = "set tokenizer.name_or_path to a folder or hub name with a tokenizer.json"
    try:
        with warnings_of_transformers() as warnings:
            tokenizer = AutoTokenizer.from_pretrained(local_folder(source, "tokenizer"))
    except UserError:
        raise
    except Exception as error:  # many kinds, all of them mean that there is no tokenizer that can be used
        line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":. ")
        raise UserError(f"tokenizer: {source}: no tokenizer can be loaded ({line}); {mend}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"tokenizer: {source}: it has no fast version (tokenizer.json), and only fast tokenizers are used"
        )
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    if not tokenizer.get_vocab().keys() - special:
        # Of a folder without a tokenizer's files, transformers makes one that takes every word for unknown.
        raise UserError(f"tokenizer: {source}: it has no files of a tokenizer, or an empty vocabulary; {mend}")
    for warning in [] if quietly else warnings:
        logger.warning("tokenizer: %s: %s", source, warning)
    return tokenizer


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", max_length: int, folder: Path) -> dict[str, Any]:
    """Save a tokenizer with what it lacks added; return `hash` of its content and `tokens_added`."""
    before = len(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    if tokenizer.mask_token is None:
        # A mask takes the space before it, as a word would that begins with its space.
        tokenizer.add_special_tokens({"mask_token": AddedToken("[MASK]", lstrip=True, special=True)})
    tokenizer.model_max_length = max_length
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(str(folder))
    content = [
        tokenizer.backend_tokenizer.to_str(),
        {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
    ]
    return {"hash": digest(content), "tokens_added": len(tokenizer) - before}
