"""What a caption says of sides, findings, modality, plane and numbers: the mentions that the proxies compare."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from grrcoca_cli.evaluation import lexicon

KINDS = ("side", "negation", "modality", "plane", "numbers")

Mention = tuple[str, ...]
"""A family and a value: two values of one family can contradict each other."""

OPPOSITE = {"left": "right", "right": "left"}
_BOTH = ["left", "right", "both"]
_SIDES = {"left": ["left"], "right": ["right"], "lt": ["left"], "rt": ["right"], "leftward": ["left"]}
_SIDES |= {"rightward": ["right"], "bilateral": _BOTH, "bilaterally": _BOTH, "bilat": _BOTH}
_WORD = re.compile(r"\d+[.,]\d+|[^\W_]+|[.,;:()\[\]?!=/]")
_MARKS = frozenset(".,;:()[]?!=/")
_CLAUSE_END = frozenset(".;?!")
_LEGEND = re.compile(r"[lr][a-z]{1,4}")  # RV, LCA: the first letter is a side
_NUMBER = r"\d+(?:[.,]\d+)?"
_MILLIMETRES = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0}
_SIZE = re.compile(
    rf"(?<![\w.])({_NUMBER}(?:\s?(?:mm|cm)?\s?(?:[x×*∗–-]|by|to)\s?{_NUMBER}){{0,3}})\s?-?"
    r"(mm|cm|millimet(?:er|re)|centimet(?:er|re))s?\b(?!\s?hg|/s)"
)
_LEVEL = re.compile(r"(?<![\w'])([ctls])(\d{1,2})(?:\s?[-–/]\s?([ctls])?(\d{1,2}))?\b")
_LEVELS = {"c": 7, "t": 12, "l": 5, "s": 5}


@dataclass(frozen=True)
class Mentions:
    """What one text says, by kind.

    Attributes:
        values: Mentions of each kind, for precision and recall.
        bound: Sides with the word they belong to: ``(word, "left")``; a bilateral one also as ``(word, "both")``.
    """

    values: dict[str, frozenset[Mention]]
    bound: frozenset[Mention]


def mentions(text: str) -> Mentions:
    """What a caption or a reference says, of every kind."""
    text = _plain(text)
    words = [lexicon.SPELLINGS.get(word, word) for word in _WORD.findall(text)]
    sides, bound = _sides(text)
    values = {
        "side": sides,
        "negation": _findings(words),
        "modality": frozenset(("modality", name) for name in _named(text, _modalities())),
        "plane": frozenset(
            [("plane", name) for name in _named(text, _planes())] + [("view", name) for name in _named(text, _views())]
        ),
        "numbers": frozenset([*_numbers(text), *_levels(text), *_counts(_WORD.findall(text))]),
    }
    return Mentions(values, bound)


def _plain(text: str) -> str:
    """Lower case, one blank between words, and nothing lost by it."""
    upper_only = re.sub(rf"\b{lexicon.ULTRASOUND_ONLY_UPPER}\b", "ultrasound", text)
    return " ".join(upper_only.lower().replace("’", "'").split())


def modality_of(references: Sequence[str]) -> str:
    """The modality that the references name first, in the lexicon's words; empty where they name none."""
    for text in map(_plain, references):
        places = [(found.start(), name) for name, pattern in _modalities().items() if (found := pattern.search(text))]
        if places:
            return min(places)[1]
    return ""


def _sides(text: str) -> tuple[frozenset[Mention], frozenset[Mention]]:
    """Sides, and sides with the words they belong to."""
    words = _WORD.findall(_not_sides().sub(" ", _both().sub("bilateral", text)))
    words = [lexicon.SPELLINGS.get(word, word) for word in words]
    sides: set[Mention] = set()
    bound: set[Mention] = set()
    for place, word in enumerate(words):
        for side in _SIDES.get(word, ()):
            if side in OPPOSITE:
                sides.add(("side", side))
            bound.update((neighbour, side) for neighbour in _neighbours(words, place))
    return frozenset(sides), frozenset(bound)


def _neighbours(words: Sequence[str], place: int) -> list[str]:
    """What a side belongs to: up to three things behind it in its phrase, or two before it where there are none."""
    is_noun = list(words[max(0, place - 2) : place]) in (["on", "the"], ["to", "the"])
    start = place + 1
    if not is_noun:  # left and right kidneys: the kidneys are of both
        start += _joins(words, start)
        start += words[start : start + 1] != [] and words[start] in _SIDES
    things, end = _things(words, start, may_join=not is_noun)
    if words[end : end + 1] == ["("] and words[end + 2 : end + 3] == [")"] and _LEGEND.fullmatch(words[end + 1]):
        things.append(words[end + 1])  # right atrium (RA)
    before = words[place - 2] if place > 1 and words[place - 1] in (":", "=", ",", "(") else words[max(0, place - 1)]
    if _LEGEND.fullmatch(before) and _has_content(before) and before not in words_of(lexicon.POSITIONS):
        things.append(before)  # RA: right atrium
    if things or (place and words[place - 1] == "than"):  # right greater than left: the right is
        return things
    for word in reversed(words[max(0, place - 12) : place]):
        if len(things) == 2 or word in _CLAUSE_END or word in _SIDES:
            break
        if _has_content(word):
            things.append(_singular(word))
    return things


def _things(words: Sequence[str], start: int, *, may_join: bool) -> tuple[list[str], int]:
    """Content words of the phrase at ``start``, each with its position (upper lobe), and where the phrase ends."""
    things: list[str] = []
    position = ""
    end = start
    for end in range(start, min(len(words), start + 8) + 1):
        word = words[end] if end < len(words) else "."
        if word in _MARKS - {":"} or word in _SIDES or len(things) == 3:
            break
        if word in ("and", "or", "but") and not (may_join and end == start):
            break
        if word in words_of(lexicon.POSITIONS):
            position += f"{word} "
        elif _has_content(word):
            things.append(position + _singular(word))
            position = ""
    return ([*things, position.strip()] if position else things), end


def _joins(words: Sequence[str], place: int) -> bool:
    return place + 1 < len(words) and words[place] in ("and", "or", "/") and words[place + 1] in _SIDES


def _has_content(word: str) -> bool:
    return word not in words_of(lexicon.STOP_WORDS + lexicon.SIZES) and word not in _MARKS and word not in _SIDES


def _singular(word: str) -> str:
    plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if plural else word


def _findings(words: Sequence[str]) -> frozenset[Mention]:
    """Findings of the lexicon, each ``present`` or ``denied``; hedged ones are left out."""
    known = words_of(lexicon.FINDINGS)
    found: set[Mention] = set()
    for place, word in enumerate(words):
        finding = word if word in known else _singular(word)
        is_effect = finding == "mass" and words[place + 1 : place + 2] == ["effect"]
        if finding in known and not is_effect:
            state = "denied" if _denied_behind(words, place) else _state(words, place)
            if state:
                found.add((finding, state))
    return frozenset(found)


def _state(words: Sequence[str], place: int) -> str:
    """``denied`` behind a denial that reaches as far, empty where it is hedged, else ``present``."""
    comma = 0
    for at in range(place - 1, max(-1, place - 10), -1):
        word = words[at]
        if word in _CLAUSE_END or word in words_of(lexicon.DENIAL_ENDS):
            break
        if word == ",":
            comma = at
        elif word in words_of(lexicon.PREPOSITIONS) and not _reaches(words, at):
            break
        elif _is_denial(words, at, place):
            if comma and not _lists(words, comma):
                break
            follower = words[at + 1]
            if follower in words_of(lexicon.HEDGES):
                return ""
            stays = follower in words_of(lexicon.NO_DENIALS)
            stays |= follower in words_of(lexicon.CONTRAST) and words[place - 1] not in words_of(lexicon.CONTRAST)
            return "present" if stays else "denied"
    return "present"


def _reaches(words: Sequence[str], place: int) -> bool:
    """Whether a denial reaches across the preposition at ``place``: evidence of, absence of."""
    before = words[max(0, place - 1)]
    return before in words_of(lexicon.EVIDENCE) or before in words_of(lexicon.DENIALS)


def _is_denial(words: Sequence[str], at: int, place: int) -> bool:
    word, follower = words[at], words[at + 1]
    if word == "negative":
        return follower == "for"
    if word == "free":
        return follower in ("of", "from")
    if word == "absent":
        return place - at <= 2  # absent flow and echogenic thrombus
    return word in words_of(lexicon.DENIALS)


def _lists(words: Sequence[str], comma: int) -> bool:
    """Whether an enumeration goes on behind a comma: no tear, deformity, or retraction; not: no tear, a large mass."""
    for word in words[comma + 1 : comma + 20]:
        if word in _CLAUSE_END or word in words_of(lexicon.DENIAL_ENDS):
            return False
        if word in ("or", "nor"):
            return True
    return False


def _denied_behind(words: Sequence[str], place: int) -> bool:
    """Whether what is said of the finding denies it: ``is absent``, ``was not seen``, ``could not be identified``."""
    behind = list(words[place + 1 : place + 8])
    for at, word in enumerate(behind):
        if word in _MARKS or word in words_of(lexicon.DENIAL_ENDS) or word in ("and", "of"):
            return False
        follower = behind[at + 1] if at + 1 < len(behind) else ""
        if word in words_of(lexicon.LATE_DENIALS):  # but not: excluded from the measurement
            return follower != "from" and (at == 0 or behind[at - 1] in ("is", "are", "was", "were", "been", "be"))
        if word == "no" and follower == "longer":
            return True
        if word == "not":
            later = behind[at + 2 : at + 3] if follower == "be" else [follower]
            return any(seen in words_of(lexicon.SEEN) for seen in later)
    return False


def _numbers(text: str) -> list[Mention]:
    """Lengths in millimetres, and numbers with another unit by that unit."""
    text = _number_words().sub(lambda word: _values_of_words()[word.group()], text)
    found: list[Mention] = [
        ("size", f"{float(number.replace(',', '.')) * _MILLIMETRES[unit]:.4g}")
        for numbers, unit in _SIZE.findall(text)
        for number in re.findall(_NUMBER, numbers)
    ]
    for match in _with_unit().finditer(text):
        found += [
            (match.lastgroup or "", f"{float(number.replace(',', '.')):.4g}")
            for number in re.findall(_NUMBER, match[1])
        ]
    return found


def _counts(words: Sequence[str]) -> list[Mention]:
    """How many there are of what the lexicon counts: ``two large masses``, ``3 nodules``, ``a single stent``."""
    found: list[Mention] = []
    for place, word in enumerate(words):
        count = "1" if word in ("single", "solitary") else _values_of_words().get(word, word)
        is_count = count.isascii() and count.isdigit() and len(count) <= 2
        if not is_count or (place and words[place - 1] in words_of(lexicon.LABELS)):
            continue
        for thing in words[place + 1 : place + 4]:
            counted = lexicon.SPELLINGS.get(thing) or _singular(thing)
            if thing in _MARKS or thing in words_of(lexicon.STOP_WORDS) or counted in words_of(lexicon.UNIT_WORDS):
                break  # two of the nodules, a 2 cm nodule
            if counted in words_of(lexicon.COUNTED) and (thing != counted or count == "1"):
                found.append((f"count of {counted}", str(int(count))))
                break
    return found


def _levels(text: str) -> list[Mention]:
    """Vertebral levels: ``l4-l5``, ``L4/5`` and ``C3``; T1 and T2 are left to magnetic resonance."""
    found: list[Mention] = []
    for region, first, second_region, second in _LEVEL.findall(text):
        for letter, number in ((region, first), (second_region or region, second)):
            is_weighting = letter == "t" and number in ("1", "2")
            if number and not is_weighting and 1 <= int(number) <= _LEVELS[letter]:
                found.append(("level", f"{letter}{number}"))
    return found


def _named(text: str, patterns: Mapping[str, re.Pattern[str]]) -> list[str]:
    return [name for name, pattern in patterns.items() if pattern.search(text)]


def _pattern(entry: str, behind: str = "") -> re.Pattern[str]:
    """One pattern of a lexicon's entry, words also in the plural."""
    words, *patterns = entry.split("|", 1)
    either = "|".join([*(f"{word}s?" for word in words.split()), *patterns])
    return re.compile(rf"(?<![\w-])(?:{either}){behind}(?!\w)" if behind else rf"(?<!\w)(?:{either})(?!\w)")


@cache
def _modalities() -> dict[str, re.Pattern[str]]:
    return {name: _pattern(entry) for name, entry in lexicon.MODALITIES.items()}


@cache
def _planes() -> dict[str, re.Pattern[str]]:
    return {name: _pattern(entry) for name, entry in lexicon.PLANES.items()}


@cache
def _views() -> dict[str, re.Pattern[str]]:
    behind = rf"{lexicon.VIEW_JOINTS}[ -]{lexicon.VIEW_WORDS}"
    return {name: _pattern(entry, behind) for name, entry in lexicon.VIEWS.items()}


@cache
def _with_unit() -> re.Pattern[str]:
    units = "|".join(f"(?P<{name}>{entry})" for name, entry in lexicon.UNITS.items())
    return re.compile(rf"(?<![\w.,])({_NUMBER}(?:\s?(?:-|–|to)\s?{_NUMBER})?)[ -]?(?:{units})(?!\w)")


@cache
def _number_words() -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(_values_of_words())})\b")


@cache
def _both() -> re.Pattern[str]:
    return re.compile(rf"\bboth(?= (?:\w+ ){{0,2}}(?:{'|'.join(lexicon.PAIRED.split())})\b)")


@cache
def _not_sides() -> re.Pattern[str]:
    return re.compile(rf"\b(?:{lexicon.NOT_SIDES})\b")


@cache
def words_of(entry: str) -> frozenset[str]:
    """The words of one list of the lexicon."""
    return frozenset(entry.split())


@cache
def _values_of_words() -> dict[str, str]:
    return {word: str(value) for value, word in enumerate(lexicon.NUMBER_WORDS.split(), start=2)}
