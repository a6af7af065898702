"""Sentence splitting for English and Chinese."""

import re

ABBREVIATIONS = frozenset(
    """
    mr mrs ms dr prof sr jr st messrs mme hon rev fr gen col lt sgt capt cmdr maj adm sen rep gov pres
    vs etc viz cf ca al e.g i.e eg ie fig figs eq eqs vol vols no nos pp p ed eds trans ch sec approx est dept
    univ assn inc ltd co corp bros mt ft ave blvd rd jan feb apr jun jul aug sep sept oct nov dec
    """.split()  # noqa: SIM905
)
"""Words whose full stop does not end a sentence."""

_CLOSING = "\"'”’»)\\]）」』】》〉"
_BOUNDARY = re.compile(
    rf"""
    (?P<latin> [.!?]+ [{_CLOSING}]* ) (?= \s )         # English: white space has to follow
    | (?: [。！？] | …… )++ [{_CLOSING}]*+              # Chinese: closing quotes stay with their sentence
      (?! [，、；：,;:] )                                # and a comma behind them goes on with it
    | \n [ \t]* \n \s*                                # an empty line
    """,
    re.VERBOSE,
)
_NEXT = re.compile(r"\s+[\"'“‘«(\[]*(\S)")
_LAST_WORD = re.compile(r"(\S+)\Z")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, stripped; no other character is lost."""
    sentences = []
    start = 0
    for match in _BOUNDARY.finditer(text):
        if match["latin"] and not _ends_sentence(text, start, match):
            continue
        if sentence := text[start : match.end()].strip():
            sentences.append(sentence)
        start = match.end()
    if sentence := text[start:].strip():
        sentences.append(sentence)
    return sentences


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether English end punctuation, with white space behind it, ends the sentence that began at `start`."""
    following = _NEXT.match(text, match.end())
    stands_apart = match.start() > 0 and text[match.start() - 1].isspace()  # as in tokenized text, often in lower case
    if following and following[1].islower() and not stands_apart:
        return False
    if match["latin"][0] != "." or match["latin"].startswith(".."):
        return True
    # A word is not searched for further back than the longest abbreviation reaches.
    before = _LAST_WORD.search(text, max(start, match.start() - 20), match.start())
    if before is None:
        return True
    word = before[1].lstrip("\"'“‘«([").casefold()
    if word in ABBREVIATIONS:
        return False
    is_initial = word[-1:].isalpha() and word[-1:].isascii() and (len(word) == 1 or word[-2] in ".-")
    is_list_number = word.isdigit() and text[start : match.start()].strip() == word
    return not (is_initial or is_list_number)
