"""Byte-pair encoding of CLIP: text → token ids, without placeholder tokens, start and end.

The algorithm is that of Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (ACL 2016), on
bytes. Cleaning, splitting into words and token ids are those of OpenAI CLIP (Radford et al., 2021), whose vocabulary
file is in this folder (`NOTICE.md`):

- 0…255 are the bytes inside a word, 256…511 the bytes that end a word;
- 512…49405 are the merges in order of priority: of two merges the one with the lower id comes first;
- 49406 and 49407 mark the start and the end of a text.
"""

from __future__ import annotations

import functools
import gzip
import html
from itertools import islice, pairwise
from pathlib import Path

import ftfy
import regex

START = 49406
END = 49407
VOCAB_SIZE = 49408

_VOCABULARY_FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
_MARKER_IDS = {"<|startoftext|>": START, "<|endoftext|>": END}
_MARKERS = {number: marker for marker, number in _MARKER_IDS.items()}
_WORD = regex.compile(
    r"<\|(?:start|end)oftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,  # lower-casing leaves letters, such as the long s, that only case folding makes equal
)

# The bytes that Latin-1 can print come first, then the others.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTES = (*_PRINTABLE, *(byte for byte in range(0x100) if byte not in _PRINTABLE))
_BYTE_ID = {byte: number for number, byte in enumerate(_BYTES)}
_LAST_BYTE = len(_BYTES)  # added to the id of the byte that ends a word


def clean_text(text: str) -> str:
    """Return `text` as CLIP cleans it: broken Unicode repaired, HTML unescaped, white space collapsed, lower case."""
    # Unescaped twice, because captions from the web are often escaped twice; the model was trained on the result.
    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", unescaped).strip().lower()


def encode(cleaned_text: str) -> list[int]:
    """Return the token ids of a text that `clean_text` returned."""
    return [number for word in _WORD.findall(cleaned_text) for number in _encode_word(word)]


@functools.lru_cache(maxsize=1 << 16)
def _encode_word(word: str) -> tuple[int, ...]:
    if word in _MARKER_IDS:
        return (_MARKER_IDS[word],)
    merges = _merges()
    ids = [_BYTE_ID[byte] for byte in word.encode("utf-8")]
    ids[-1] += _LAST_BYTE
    while len(ids) > 1:
        pair = min(pairwise(ids), key=lambda pair: merges.get(pair, VOCAB_SIZE))
        if pair not in merges:
            break
        ids = _merge(ids, pair, merges[pair])
    return tuple(ids)


def _merge(ids: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    """Replace every occurrence of `pair` by `merged`, from the left."""
    result: list[int] = []
    for number in ids:
        # A merged id is never the first half of the same pair: no merge contains itself.
        if result and (result[-1], number) == pair:
            result[-1] = merged
        else:
            result.append(number)
    return result


@functools.cache
def _merges() -> dict[tuple[int, int], int]:
    """Return the merges of the vocabulary file: (left id, right id) → merged id."""
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


def decode_token(number: int) -> str:
    """Return the text of the token `number`; a hyphen follows a token that does not end its word."""
    if number in _MARKERS:
        return _MARKERS[number]
    token_bytes, ends_word = _token_bytes()[number]
    return token_bytes.decode("utf-8", errors="replace") + ("" if ends_word else "-")


@functools.cache
def _token_bytes() -> list[tuple[bytes, bool]]:
    """Return the bytes of every token, in the order of the ids, and whether the token ends a word."""
    tokens = [(bytes([byte]), ends_word) for ends_word in (False, True) for byte in _BYTES]
    for left, right in _merges():  # in the order of their ids
        tokens.append((tokens[left][0] + tokens[right][0], tokens[right][1]))
    return tokens
