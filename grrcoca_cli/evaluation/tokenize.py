"""Word tokens for caption scores, as near to the official COCO tokenizer as nltk's Treebank tokenizer gets.

The official one is Stanford's PTB tokenizer, lower case, with a list of punctuation left out (Chen et al., 2015,
"Microsoft COCO Captions"). nltk's differs mostly in what it does with a period, a dash or a symbol: the rules here
put blanks where Stanford's splits, and hide from nltk what Stanford's keeps in one piece.
"""

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nltk.tokenize.treebank import TreebankWordTokenizer

TOKENIZER = "coco-nltk"
"""The name by which a signature states this tokenizer."""

# pycocoevalcap's list, less its upper-case brackets ("-LRB-"): they never meet a lower-case token.
_LEFT_OUT = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_REPLACED = str.maketrans(
    {
        "‘": " ` ",
        "“": " `` ",
        "”": " '' ",
        "–": " -- ",
        "—": " -- ",
        "…": " ... ",
        "½": " 1/2 ",
        "¼": " 1/4 ",
        "¾": " 3/4 ",
        "£": " # ",
        "€": " $ ",
        "\u200b": " ",  # zero-width space
        "\ufeff": " ",  # byte-order mark
    }
)
_BLANK = frozenset(["Cc", "Zl", "Zp", "Zs"])  # Unicode categories: controls, line and paragraph separators, spaces
_DROPPED = frozenset(["Cf", "Cn", "Co", "Cs", "Nl"])  # soft hyphen and its like, private use, Roman numeral signs

# Private-use characters, so never in a caption by then, that stand for what nltk would split off.
_PERIOD, _AMPERSAND = "\ue000", "\ue001"
_RESTORED = str.maketrans({_PERIOD: ".", _AMPERSAND: "&"})

_LETTER = r"[^\W\d_]"
_ABBREVIATION = (
    "al|approx|apr|assn|aug|ave|bldg|blvd|bros|capt|cf|co|col|corp|ct|dec|dept|dist|dr|drs|est|etc|ext|feb|gen|gov|"
    "inc|jan|jr|lt|ltd|maj|mo|mr|mrs|ms|mt|nov|oct|prof|rd|rep|rev|rt|sen|sept|sep|sgt|sr|st|univ|vs"
)
_NUMBERED = "art|ca|fig|figs|no|nos|p|pp"  # keep their period before a number only
_STARTER = "A|An|And|As|At|But|For|He|If|In|It|No|On|She|So|That|The|There|These|They|This|To|We|With"

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"&lt;", "<"),
        (r"&gt;", ">"),
        (r"&amp;", "&"),
        (r"’(?!\w)|’(?=(?:s|m|d|t|re|ve|ll)\b)", "'"),  # elsewhere, as in French, it stays
        (r"\.(?: ?\.){2,}", " ... "),
        # A period stays with an abbreviation ("i.v.", "J. Doe", "vs.", "fig. 1") and with any word before a comma.
        (
            rf"(?<![\w./'-])((?:{_LETTER}\.)+{_LETTER}|{_LETTER}(?!\. (?:{_STARTER})\b)"
            rf"|(?i:{_ABBREVIATION})|(?i:{_NUMBERED})(?=\. ?\d))\.(?!\w)",
            rf"\1{_PERIOD}",
        ),
        (r"(?<=\w)\.(?=[,;:])", _PERIOD),
        # Other periods stand alone, but inside a word they stay ("www.x.org") ...
        (rf"\.(?!\w)|(?<=\d)\.(?={_LETTER})|(?<=[)\]}}])\.", " . "),
        # ... but "figure.3" is "figure .3", and "1.5T" is "1.5 T".
        (rf"(?<={_LETTER})(\.\d)|(?<={_LETTER}\d)(\.\d)", r" \1\2"),
        (rf"(\d[.,]\d+)(?={_LETTER})", r"\1 "),
        (r"(?<=\w)&(?=\w)", _AMPERSAND),
        (r"(?<!\d),|,(?!\d)", " , "),
        # Symbols stand alone; combining marks (U+0300 to U+036F) belong to their letter.
        (rf"[^\w\s.,;:!?'`’&#$/(){{}}\[\]‐\u0300-\u036f{_PERIOD}{_AMPERSAND}-]|[²³¹]", r" \g<0> "),
        # A dash or a slash with a word on one side only stands alone, but for the sign of a number.
        (rf"(?<=\w)([-/])(?![\w/-])|(?<![\w/-])([-/])(?={_LETTER})", r" \1\2 "),
        (r"(?<!\S)'(?=\w)(?!s\b|\d\ds?\b)", "` "),  # an opening quote, unless "'s" or "'90s"
    )
)


@cache
def _treebank() -> "TreebankWordTokenizer":
    from nltk.tokenize.treebank import TreebankWordTokenizer  # a fifth of a second, so not before it is needed

    return TreebankWordTokenizer()


def _one_line(caption: str) -> str:
    """The caption with single spaces only: pycocoevalcap takes a line separator for the end of the caption."""
    kept = []
    for character in caption.translate(_REPLACED):
        category = unicodedata.category(character)
        if category in _BLANK:
            kept.append(" ")
        elif category not in _DROPPED and character <= "\uffff":
            kept.append(character)
    return " ".join("".join(kept).split())


def coco_tokens(caption: str) -> list[str]:
    """Lower-case word tokens of one caption, punctuation left out.

    Args:
        caption: Any text; line separators and control characters count as spaces.

    Returns:
        Tokens without white space in them; brackets stay, as ``-lrb-`` and ``-rrb-``. Empty for a caption of
        punctuation only.
    """
    text = _one_line(caption)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    tokens = (token.translate(_RESTORED).lower() for token in _treebank().tokenize(text, convert_parentheses=True))
    return [token for token in tokens if token not in _LEFT_OUT]
