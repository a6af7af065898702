"""Sentence splitting: where Unicode has a sentence end, in every script, but not behind English abbreviations."""

import re

import regex

ABBREVIATIONS = frozenset(
    """
    mr mrs ms dr prof sr jr st messrs mme hon rev fr gen col lt sgt capt cmdr maj adm sen rep gov pres
    vs etc viz cf ca al e.g i.e eg ie fig figs eq eqs vol vols no nos pp p ed eds trans ch sec approx est dept
    univ assn inc ltd co corp bros mt ft ave blvd rd jan feb apr jun jul aug sep sept oct nov dec
    """.split()  # noqa: SIM905
)
"""Words whose full stop does not end a sentence."""

_CLOSING = "\"'”’»)\\]）」』】》〉"
_END = r"[\p{Sentence_Terminal}--[.!?\u2024\uFE52．]] | ．(?!\p{N}) | …… | ׃ | [།༎](?:\s*[།༎])*"
_BOUNDARY = regex.compile(
    rf"""
    (?P<spaced> (?: [.!?] | (?<=\p{{Greek}}) [;\u037e] )+ [{_CLOSING}]* )  # the Greek question mark is a semicolon
      (?= \s )                                         # these stand within words too: white space has to follow
    | (?: {_END} ) (?: {_END} | [!?] )*+
      [{_CLOSING}]*+                                   # closing quotes stay with their sentence
      (?! [，、；：،,;:] )                               # and a comma behind them goes on with it
    | \n [ \t]* \n \s*                                # an empty line
    """,
    regex.VERBOSE | regex.V1,
)
"""Full stops and what does their work, among them 。 । ؟ ۔ ። ։ ။ ។, and what Unicode calls none: the Greek question
mark, the Tibetan shad and the Hebrew sof pasuq."""
_BOUNDARY_IN_ASCII = re.compile(r"(?P<spaced>[.!?]+[\"')\]]*)(?=\s)|\n[ \t]*\n\s*")
_NEXT = re.compile(r"\s+[\"'“‘«(\[]*(\S)")
_LAST_WORD = re.compile(r"(\S+)\Z")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, stripped; no other character is lost."""
    sentences = []
    start = 0
    for match in (_BOUNDARY_IN_ASCII if text.isascii() else _BOUNDARY).finditer(text):
        if match["spaced"] and not _ends_sentence(text, start, match):
            continue
        if sentence := text[start : match.end()].strip():
            sentences.append(sentence)
        start = match.end()
    if sentence := text[start:].strip():
        sentences.append(sentence)
    return sentences


def _ends_sentence(text: str, start: int, match: re.Match[str] | regex.Match[str]) -> bool:
    """Whether a full stop and the like, with white space behind it, ends the sentence that began at `start`."""
    following = _NEXT.match(text, match.end())
    stands_apart = match.start() > 0 and text[match.start() - 1].isspace()  # as in tokenized text, often in lower case
    # Georgian letters are lower case to Unicode, and begin sentences all the same: they are their own title case.
    goes_on = following and following[1].islower() and following[1].title() != following[1]
    if goes_on and not stands_apart:
        return False
    if match["spaced"][0] != "." or match["spaced"].startswith(".."):
        return True
    # A word is not searched for further back than the longest abbreviation reaches.
    before = _LAST_WORD.search(text, max(start, match.start() - 20), match.start())
    if before is None:
        return True
    word = before[1].lstrip("\"'“‘«([").casefold()
    if word in ABBREVIATIONS:
        return False
    is_letter = (word[-1:].isascii() and word[-1:].isalpha()) or before[1][-1].isupper()
    is_initial = is_letter and (len(word) == 1 or word[-2] in ".-")
    is_list_number = word.isdigit() and text[start : match.start()].strip() == word
    return not (is_initial or is_list_number)
