"""Text to the byte-pair ids of CLIP, with no placeholders and no start or end.

The method is Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (ACL 2016), on bytes. The
cleaning, the splitting into words and the numbering are those of OpenAI CLIP (Radford et al., 2021), whose vocabulary
file lies beside this file (`NOTICE.md`):

- 0…255 are the bytes inside a word, 256…511 the bytes that end one;
- 512…49405 are the merges in the order they were learned, so the lower of two ids is the merge to do first;
- 49406 and 49407 are the start and the end of a text.
"""

from __future__ import annotations

import functools
import gzip
import html
from itertools import islice, pairwise
from pathlib import Path

import ftfy
import regex

START, END, VOCABULARY = 49406, 49407, 49408

_VOCABULARY_FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
_MARKERS = {"<|startoftext|>": START, "<|endoftext|>": END}
_WORD = regex.compile(
    r"<\|(?:start|end)oftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,  # lower-casing leaves letters, such as the long s, that only case folding makes equal
)

# The bytes that Latin-1 can print come first, then the others.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTES = (*_PRINTABLE, *(byte for byte in range(0x100) if byte not in _PRINTABLE))
_BYTE_ID = {byte: number for number, byte in enumerate(_BYTES)}
_LAST_BYTE = len(_BYTES)  # added to the id of the byte that ends a word


def clean(text: str) -> str:
    """Return `text` as CLIP sees it: broken Unicode mended, HTML unescaped, white space folded, lower-cased."""
    # Twice, because captions gathered from the web are often escaped twice; the model was trained on the result.
    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", unescaped).strip().lower()


def encode(cleaned: str) -> list[int]:
    """Return the ids of a text that `clean` has cleaned."""
    return [number for word in _WORD.findall(cleaned) for number in _encode_word(word)]


@functools.lru_cache(maxsize=1 << 16)
def _encode_word(word: str) -> tuple[int, ...]:
    if word in _MARKERS:
        return (_MARKERS[word],)
    merges = _merges()
    ids = [_BYTE_ID[byte] for byte in word.encode("utf-8")]
    ids[-1] += _LAST_BYTE
    while len(ids) > 1:
        pair = min(pairwise(ids), key=lambda pair: merges.get(pair, VOCABULARY))
        if pair not in merges:
            break
        ids = _merge(ids, pair, merges[pair])
    return tuple(ids)


def _merge(ids: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    """Put `merged` for every occurrence of `pair`, from the left."""
    result: list[int] = []
    for number in ids:
        # A result is never half of the next pair again: no merge is made of itself.
        if result and (result[-1], number) == pair:
            result[-1] = merged
        else:
            result.append(number)
    return result


@functools.cache
def _merges() -> dict[tuple[int, int], int]:
    """Read the vocabulary file: (left id, right id) → id of the two together."""
    # The file spells bytes as characters: the printable ones as themselves, the others from U+0100 on.
    characters = [chr(byte) for byte in _PRINTABLE] + [chr(0x100 + k) for k in range(0x100 - len(_PRINTABLE))]
    numbers = {name: number for number, name in enumerate([*characters, *(c + "</w>" for c in characters)])}
    merges = {}
    with gzip.open(_VOCABULARY_FILE, "rt", encoding="utf-8") as lines:
        # After a heading the file has more merges than the published models use.
        for merged, line in enumerate(islice(lines, 1, 1 + START - len(numbers)), len(numbers)):
            left, right = line.split()
            merges[numbers[left], numbers[right]] = numbers[left + right] = merged
    return merges


def spelled(number: int) -> str:
    """Return how the token `number` is written; one that does not end its word has a hyphen behind it."""
    if number in (START, END):
        return next(name for name, marker in _MARKERS.items() if marker == number)
    spelling, ends = _spellings()[number]
    return spelling.decode("utf-8", errors="replace") + ("" if ends else "-")


@functools.cache
def _spellings() -> list[tuple[bytes, bool]]:
    """Return the bytes of every token, in the order of their numbers, and whether it ends a word."""
    found = [(bytes([byte]), ends) for ends in (False, True) for byte in _BYTES]
    for left, right in _merges():  # in the order in which they were numbered
        found.append((found[left][0] + found[right][0], found[right][1]))
    return found
