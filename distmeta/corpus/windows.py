"""Windows: what text without sentence ends is cut into, such as a corpus in one line or Thai."""

from distmeta.corpus.boundaries import find_segments


def cut_into_windows(sentence: str, most: int) -> list[str]:
    """Return a sentence of more than `most` words as windows of about the same number of words, at most `most`.

    They are cut at white space between words, or between words where a script sets none. Joined, but for white space at
    their ends, they are the sentence. A sentence that is no longer is returned as it is.
    """
    # A word takes a character, and in plain English one more that sets it apart.
    if len(sentence) <= most * (2 if sentence.isascii() else 1):
        return [sentence]
    words = list(find_segments(sentence))
    count = -(-len(words) // most)
    if count < 2:
        return [sentence]
    windows, start = list[str](), 0
    for number in range(1, count):
        first = len(words) * number // count
        gap, end = words[first - 1].end, words[first].start
        spaces = [place for place in range(gap, end) if sentence[place].isspace()]
        cut = spaces[-1] + 1 if spaces else end
        windows.append(sentence[start:cut].strip())
        start = cut
    return [*windows, sentence[start:].strip()]
