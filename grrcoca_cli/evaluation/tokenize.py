"""Word tokens for caption scores, as near to the official COCO tokenizer as nltk's Treebank tokenizer gets.

The official one is Stanford's PTB tokenizer, lower case, with a list of punctuation left out (Chen et al., 2015,
"Microsoft COCO Captions"). nltk's differs mostly in what it does with a period, a dash or a symbol: the rules here
put blanks where Stanford's splits, and hide from nltk what Stanford's keeps in one piece. They were written from its
output. What is known to stay different: telephone numbers, smileys but ``=)``, file paths and chemical formulas with
several slashes or digits, French elision before an accent.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from grrcoca_cli.errors import UsageError

if TYPE_CHECKING:
    from nltk.tokenize.treebank import TreebankWordTokenizer

# pycocoevalcap's list, less its upper-case brackets ("-LRB-"): they never meet a lower-case token.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
BRACKETS = frozenset(["-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"])

_REPLACED = str.maketrans(
    {
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
_HIDDEN = {shown: chr(0xE000 + place) for place, shown in enumerate(".&:?!=,-/+%@#$*~")}
_PERIOD, _AMPERSAND, _COLON = (_HIDDEN[shown] for shown in ".&:")
_HIDE, _RESTORE = str.maketrans(_HIDDEN), str.maketrans({hidden: shown for shown, hidden in _HIDDEN.items()})
_PRIVATE = "".join(_HIDDEN.values())

_LETTER = r"[^\W\d_]"
_ABBREVIATION = (
    "(?i:adm|al|apr|assn|aug|ave|bldg|blvd|bros|capt|cf|co|col|comdr|corp|cpl|ct|dec|dept|dr|drs|est|etc|ext|feb|fri|"
    "ft|gen|gov|hon|inc|jan|jr|jul|jun|lieut|lt|ltd|maj|messrs|mo|mon|mr|mrs|ms|mt|nov|oct|pfc|ph|pres|prof|pvt|rd|rep|"
    "rev|rt|sen|sens|sep|sept|sgt|spc|sq|sr|st|supt|thu|tue|univ|vs|wed|"
    "ala|ariz|calif|colo|conn|dak|fla|ga|ind|kan|kans|ky|md|mich|minn|mont|neb|nev|okla|penn|tenn|va|vt|wisc|wyo)"
    "|(?:Del|DEL|Ark|ARK|Ill|ILL|La|LA|Mass|MASS|Miss|MISS|Ore|ORE|Pa|PA|Tex|TEX|Wash|WASH)"
)
_NUMBERED = "art|ca|fig|figs|no|nos|op|pp"  # keep their period before a number only
_STARTER = "A|An|And|As|At|But|For|He|If|In|It|No|On|She|So|That|The|There|These|They|This|To|We|With"
_COMPOUND = r"\w+(?:-\w+){3,}|\w+-\w*\d\w*|[^\W\d_A-Za-z]+-\w+|\d+[.,]\d+|[µμ]\w+"
"""What a slash is split off from: elsewhere it joins, as in ``ct/mri``."""
_PATH = r"[^\s\"<>|()]*[^\s\"<>|.!?(){},-]"
_URL = re.compile(rf"(?<![\w.])https?://{_PATH}|(?<![\w.])www\.[\w-]+(?:\.[\w-]+)*(?:/{_PATH})?")

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"&lt;", "<"),
        (r"&gt;", ">"),
        (r"&amp;", "&"),
        (r"’(?!\w)|’(?=(?:s|m|d|t|re|ve|ll)\b)", "'"),  # elsewhere, as in French, it stays
        (rf"(?<!{_LETTER})‘|‘(?!{_LETTER})|`", " ` "),
        (r"\bs’(?=é)", "s ' "),
        (r"\.(?: ?\.){2,}", " ... "),
        (rf"(?<!\S)\.(?={_LETTER})", " . "),
        (rf"(?<![\w/-])({_COMPOUND})/(?=\w)", r"\1 / "),
        (r"(?<=\))/(?=\w)", " / "),
        (rf"(?<={_LETTER}/\d)/(?=\d)", " / "),
        (r"(?<![\w.])([A-Za-z])\.-(?=[A-Za-z]\b)", rf"\1{_PERIOD}{_HIDDEN['-']}"),
        (rf"(?<=\d)(?<!{_LETTER}\d)\.(?={_LETTER})", " . "),
        # A period stays with an abbreviation ("i.v.", "J. Doe", "vs.", "fig. 1") and with any word before a comma.
        (
            rf"(?<![\w./'{_PRIVATE}-])((?:{_LETTER}\.)+{_LETTER}|[A-Za-z](?!\. (?:{_STARTER})\b(?!\.))"
            rf"|{_ABBREVIATION}|(?i:{_NUMBERED})(?=\.\s?\d))\.(?!\w)",
            rf"\1{_PERIOD}",
        ),
        (rf"(?<![\w.-])((?i:{_NUMBERED}|p))\.(?=\d)", rf"\1{_PERIOD} "),
        (r"(?<=\w)\.(?=[,;:])", _PERIOD),
        # Behind a word with a hyphen, or a number with its unit, a period ends the sentence, also without a blank.
        (rf"(?<![\w.-])(\w+-[\w-]*\w|\d+{_LETTER}+)\.(?={_LETTER})", r"\1 . "),
        # Other periods stand alone, but inside a word they stay ("www.x.org") ...
        (r"\.(?!\w)|(?<=[)\]}])\.", " . "),
        # ... but "figure.3" is "figure .3", "e12.5" is "e12 .5", and "1.5T" is "1.5 T".
        (rf"({_LETTER}\d{{0,3}})(?=\.\d)", r"\1 "),
        (rf"(/\d{{1,3}})(?=\.\d)(?<={_LETTER}/\d)", r"\1 "),
        (r",(?!\d)", " , "),
        (r"(?<!\d),(?=\d)", " ,"),
        (rf"(\d[.,]\d+|(?<![\w.,-])[-+.,]\d+)(?={_LETTER})", r"\1 "),
        (r"(?<=\w)&(?=\w)", _AMPERSAND),
        (rf"(?<={_LETTER}):(?=\d)", f" {_COLON}"),
        (r"(?<=\d:\d\d)-(?=\d)", " -"),
        # Symbols stand alone; combining marks (U+0300 to U+036F) belong to their letter.
        (rf"[^\w\s.,;:!?'`’‘&#$/+(){{}}\[\]‐\u0300-\u036f{_PRIVATE}-]|[²³¹①-⓿]", r" \g<0> "),
        (r"\b([A-Z]+)\+([A-Z]+)(?:-(?=\w)|\b)", rf"\1{_HIDDEN['+']}\2 "),
        (rf"(?<={_LETTER})\+(?=\d)", " +"),
        (r"\+(?!\d)|(?<=[^\s(])\+", " + "),
        # A dash or a slash with a word on one side only stands alone, but for the sign of a number.
        (r"(?<=\d[.,]\d)‐|(?<=\d[.,]\d\d)‐|-(?=µ)", " - "),
        (r"(?<=\w/)(\w+)(?=-\d)", r"\1 "),
        (rf"(?<=\w)([-/])(?![\w/-])|(?<![\w/-])([-/])(?={_LETTER})|(/)(?=-)|(?<=-)(/)|(-)(?=/)", r" \g<0> "),
        (r"(?<!\S)'(?=\w)(?!s\b|\d\ds?\b)", "` "),  # an opening quote, unless "'s" or "'90s"
        (rf"(?<={_LETTER})[?!](?={_LETTER})", lambda found: found.group().translate(_HIDE)),
    )
)


@cache
def _treebank() -> "TreebankWordTokenizer":
    from nltk.tokenize.treebank import TreebankWordTokenizer  # a fifth of a second, so not before it is needed

    return TreebankWordTokenizer()


_PLAIN_WORD = r"[A-Za-z0-9]+(?:(?<=[A-Za-z][A-Za-z])-[A-Za-z]{2,})*"
_PLAIN = re.compile(rf"(?:{_PLAIN_WORD}(?:(?<=[A-Za-z]),)? )*{_PLAIN_WORD}(?:(?<=[A-Za-z][A-Za-z]) ?\.)?")
"""Captions of plain words, nine of ten: they need no rules, but for the two kinds of words below."""
_CONTRACTIONS = frozenset(["cannot", "gimme", "gonna", "gotta", "lemme", "wanna"])
_ABBREVIATED = re.compile(rf"\b(?:{_ABBREVIATION})\.")


def one_line(caption: str) -> str:
    """The caption with single spaces only: pycocoevalcap takes a line separator for the end of the caption."""
    if caption.isascii() and caption.isprintable():
        return " ".join(caption.split())
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
    line = " ".join(caption.split())
    if _PLAIN.fullmatch(line):
        words = line.lower().replace(",", "").replace(".", "").split()
        last = max(line.rfind(" ", 0, -2), 0)
        if _CONTRACTIONS.isdisjoint(words) and not (line.endswith(".") and _ABBREVIATED.search(line, last)):
            return words
    return _scan(caption)


def _scan(caption: str) -> list[str]:
    """`coco_tokens` of any caption, by the rules."""
    text = _URL.sub(lambda found: found.group().translate(_HIDE), one_line(caption))
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    tokens = (token.translate(_RESTORE).lower() for token in _treebank().tokenize(text, convert_parentheses=True))
    return [token for token in tokens if token not in PUNCTUATION]


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
