"""Loaders of text for language models: windows of tokens, cut once.

Held-out splits are short: each row is a whole window, and logits of every position and run are in
memory at once when many runs are evaluated together.
"""

from __future__ import annotations

import gzip
import sys
import sysconfig
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from .base import Split
from .data import MAX_TRAIN, Dataset, IntArray, dataset, generator, require

SHAKESPEARE = "tinyshakespeare/input.txt"
WIKITEXT = tuple(f"wikitext-2/{split}.txt.gz" for split in ("train", "valid", "test"))

WIKITEXT_VOCABULARY = 2_000
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # newline and printable ASCII: 96

_MODULES = ("argparse.py", "collections", "http", "json", "logging", "textwrap.py")
_BLOCK = 2_000  # characters that go to one split together

# Names of these code points are a word and a number.
_NUMBERED = ("CJK ", "TANGUT ", "NUSHU ", "KHITAN ", "HANGUL SYLLABLE", "VARIATION SELECTOR")
NAME_CHARACTERS = "\n -0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # 39


def _windows(stream: IntArray, context: int, stride: int) -> IntArray:
    """(n, context + 1) windows of a stream; the last token is the last target."""
    return np.lib.stride_tricks.sliding_window_view(stream, context + 1)[::stride]


def _cut(
    name: str,
    streams: dict[Split, list[IntArray]],
    context: int,
    n_tokens: int,
    *,
    last_only: bool,
    held_out: int,
) -> Dataset:
    """Windows without overlap, in random order.

    Args:
        name: Seeds the order.
        streams: Tokens per split; no window crosses from one piece to the next.
        context: Tokens that the model sees.
        n_tokens: Size of the vocabulary.
        last_only: Target is the token after the window, (N,); else each next token, (N, context).
        held_out: Most rows in `outer_valid` and `test`; `inner_valid` has a quarter.
    """
    caps: dict[Split, int] = {
        "train": MAX_TRAIN,
        "inner_valid": held_out // 4,
        "outer_valid": held_out,
        "test": held_out,
    }
    inputs, targets = {}, {}
    for split, pieces in streams.items():
        rows = np.concatenate([_windows(p, context, context) for p in pieces if len(p) > context])
        rows = rows[generator("windows", name, split).permutation(len(rows))[: caps[split]]]
        inputs[split] = rows[:, :-1]
        targets[split] = rows[:, -1] if last_only else rows[:, 1:]
    return dataset(inputs, targets, n_tokens)


def _library_text() -> str:
    """Sources of a few standard modules of the running Python, about 600,000 characters."""
    root = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for name in _MODULES:
        module = root / name
        files += [module] if module.suffix == ".py" else sorted(module.glob("*.py"))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@cache
def python_source(context: int, *, last_only: bool = False) -> Dataset:
    """Characters of Python's own standard library; nothing to download.

    Blocks of 2,000 characters are dealt to the splits: 76% train, 8% each to the others. The text
    is the running Python's, so tasks are the same across machines with the same Python.
    """
    streams = _dealt("python", _stream(_library_text(), CHARACTERS))
    held_out = 1024 if last_only else 256
    size = len(CHARACTERS)
    return _cut("python", streams, context, size, last_only=last_only, held_out=held_out)


def _stream(text: str, characters: str) -> IntArray:
    """Numbers of the characters; those that are not among `characters` are left out."""
    codes = {character: i for i, character in enumerate(characters)}
    return np.array([codes[c] for c in text if c in codes], dtype=np.int64)


def _dealt(name: str, stream: IntArray) -> dict[Split, list[IntArray]]:
    """Blocks of 2,000 characters: 8% to each held-out split, the rest to `train`."""
    blocks = [stream[i : i + _BLOCK] for i in range(0, len(stream), _BLOCK)]
    order = [blocks[i] for i in generator("blocks", name).permutation(len(blocks))]
    n = len(order) * 2 // 25
    return {
        "train": order[3 * n :],
        "inner_valid": order[:n],
        "outer_valid": order[n : 2 * n],
        "test": order[2 * n : 3 * n],
    }


@cache
def python_docs(context: int) -> Dataset:
    """Characters of the English prose that Python's `help()` shows; nothing to download.

    Lines that are indented are left out: the examples, which are Python source, stand in them. So
    is a line that was there before: topics quote one another by the page, and what is held out
    would stand in `train`. The target is the one character after the window. The text is the
    running Python's.
    """
    from pydoc_data.topics import topics  # half a megabyte that only this needs

    lines = "\n".join(topics[key] for key in sorted(topics)).splitlines()
    prose = "\n".join(dict.fromkeys(line for line in lines if line and line[0] != " "))
    streams = _dealt("python-docs", _stream(prose, CHARACTERS))
    size = len(CHARACTERS)
    return _cut("python-docs", streams, context, size, last_only=True, held_out=1024)


@cache
def unicode_names(context: int) -> Dataset:
    """Names of Unicode's characters in random order, one per line, cut into windows.

    Those that a number ends (CJK UNIFIED IDEOGRAPH-4E00 and the like) are left out. The names are
    those of the running Python's Unicode.
    """
    found = (unicodedata.name(chr(code), "") for code in range(sys.maxunicode + 1))
    names = [name for name in found if name and not name.startswith(_NUMBERED)]
    order = generator("names").permutation(len(names))
    lines = "\n".join(names[i] for i in order)
    streams = _dealt("unicode-names", _stream(lines, NAME_CHARACTERS))
    size = len(NAME_CHARACTERS)
    return _cut("unicode-names", streams, context, size, last_only=False, held_out=512)


@cache
def shakespeare(context: int) -> Dataset:
    """Tiny Shakespeare by character: first 90% train, next 5% validation, last 5% test."""
    text = np.fromfile(require(SHAKESPEARE), np.uint8)
    vocabulary, ids = np.unique(text, return_inverse=True)
    train, valid, test = np.split(ids, [len(ids) * 9 // 10, len(ids) * 19 // 20])
    inner, outer = np.array_split(valid, 2)
    streams: dict[Split, list[IntArray]] = {
        "train": [train],
        "inner_valid": [inner],
        "outer_valid": [outer],
        "test": [test],
    }
    size = len(vocabulary)
    return _cut("shakespeare", streams, context, size, last_only=False, held_out=256)


@cache
def _wikitext_ids() -> dict[Split, list[IntArray]]:
    words = []
    for file in WIKITEXT:
        with gzip.open(require(file), "rt", encoding="utf-8") as stored:
            words.append(stored.read().replace("\n", " <eos> ").split())
    train, valid, test = words
    # The file's own <unk> is among the frequent words; rarer ones join it. Ties go by the word.
    ranked = sorted(Counter(train).items(), key=lambda item: (-item[1], item[0]))
    ids = {word: i for i, (word, _) in enumerate(ranked[:WIKITEXT_VOCABULARY])}
    unknown = ids["<unk>"]
    streams = [np.array([ids.get(w, unknown) for w in s], np.int64) for s in (train, valid, test)]
    inner, outer = np.array_split(streams[1], 2)
    return {
        "train": [streams[0]],
        "inner_valid": [inner],
        "outer_valid": [outer],
        "test": [streams[2]],
    }


@cache
def wikitext(context: int, *, last_only: bool = False) -> Dataset:
    """WikiText-2 by word, the 2,000 most frequent words; the official splits."""
    held_out = 512 if last_only else 64  # 2,000 logits each
    size = WIKITEXT_VOCABULARY
    streams = _wikitext_ids()
    return _cut("wikitext", streams, context, size, last_only=last_only, held_out=held_out)
