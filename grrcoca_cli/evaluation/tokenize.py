"""Word tokens for caption scores: those of the official COCO tokenizer, without its Java.

The official one is Stanford's PTB tokenizer, lower case, with a list of punctuation left out (Chen et al., 2015,
"Microsoft COCO Captions"). `scanner` holds the rules, written from what the original answers.

What stays different: a token never holds white space here. The original writes a no-break space into mixed numbers
(``21 3/7``), telephone numbers and tags with attributes; pycocoevalcap's BLEU and CIDEr then split there, as this does,
and its ROUGE-L does not. Also, as far as known: ``cannot's``, brackets inside tags, addresses with a port or a query
before the path, message ids, version numbers with an ``x``, a backslash behind a colon or before a star, smileys of
more than two signs, and characters that Unicode got after 2008.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation.scanner import TOKEN

TOKENIZER_VERSION = 1
"""Of all tokenizers here, for signatures: goes up with every change of a token."""

# pycocoevalcap's list, less its upper-case brackets ("-LRB-"): they never meet a lower-case token.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
BRACKETS = frozenset(["-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"])

_WRITTEN = {
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "cannot": "can not",
    "gimme": "gim me",
    "gonna": "gon na",
    "gotta": "got ta",
    "lemme": "lem me",
    "wanna": "wan na",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
    "⅓": "1/3",
    "⅔": "2/3",
    "¢": "cents",
    "£": "#",
    "€": "$",
    "¤": "$",
    "₠": "$",
    "&lt;": "<",
    "&gt;": ">",
    "n’t": "n't",
    "n‘t": "n`t",
    **{f"’{end}": f"'{end}" for end in ("s", "m", "d", "re", "ve", "ll")},
    **dict.fromkeys(["?", "!", "&quot;", "&apos;", "&nbsp;", "&mdash;", "&ndash;"], ""),
}
"""How a token of the scanner is written; with a space, as two. The empty ones are left out."""

_PLAIN = re.compile(r"(?:[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*,? )*[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?: ?\.)?")
"""Captions of plain words, nine of ten in COCO: but for a contraction, or a last word with a period, no rule is met."""
_CONTRACTIONS = frozenset(word for word in _WRITTEN if word.isalpha() and word.isascii())


def one_line(caption: str) -> str:
    """The caption with single spaces only: pycocoevalcap takes a line separator for the end of the caption."""
    return " ".join(caption.split())


def coco_tokens(caption: str) -> list[str]:
    """Lower-case word tokens of one caption, punctuation left out.

    Args:
        caption: Any text; line separators and control characters count as spaces.

    Returns:
        Tokens without white space in them; brackets stay, as ``-lrb-`` and ``-rrb-``. Empty for a caption of
        punctuation only.
    """
    line = one_line(caption)
    if _PLAIN.fullmatch(line):
        words = line.lower().replace(",", "").replace(".", "").split()
        if _CONTRACTIONS.isdisjoint(words):
            return [*words[:-1], *_last(line.rpartition(" ")[2])] if line[-1] == "." and line[-2] != " " else words
    return _scan(line)


@lru_cache(maxsize=10_000)
def _last(word: str) -> tuple[str, ...]:
    return tuple(_scan(word))


def _scan(line: str) -> list[str]:
    """`coco_tokens` of any line, by the rules."""
    found = "\n".join(TOKEN.findall(line.replace("\xad", ""))).lower()  # a soft hyphen is not there
    found = found.replace("(", "-lrb-").replace(")", "-rrb-").replace("&amp;", "&")  # also in smileys and AT&amp;T
    return " ".join([_WRITTEN.get(token, token) for token in found.split("\n")]).split()


def imageclef_tokens(caption: str) -> list[str]:
    """Words as ImageCLEF's caption task prepares them: lower case, digit runs are ``number``, punctuation deleted."""
    text = re.sub(r"\d+", "number", one_line(caption).lower())
    return re.sub(r"[^\w\s]|_", "", text).split()


def tokenizer(name: str) -> Callable[[str], list[str]]:
    """A tokenizer by name: ``coco``, ``coco-nobrackets``, ``imageclef`` or ``whitespace``.

    Raises:
        UsageError: There is no such tokenizer.
    """
    if name not in TOKENIZERS:
        raise UsageError(f"no tokenizer {name!r}; there are {', '.join(TOKENIZERS)}")
    return TOKENIZERS[name]


def _without_brackets(caption: str) -> list[str]:
    return [token for token in coco_tokens(caption) if token not in BRACKETS]


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "coco": coco_tokens,
    "coco-nobrackets": _without_brackets,
    "imageclef": imageclef_tokens,
    "whitespace": str.split,
}
