"""The rules of `tokenize.coco_tokens`: one expression whose alternatives are tried in order at each place of a line.

Written from what the Stanford PTB tokenizer of pycocoevalcap answers, never from its source. Where two rules fit, it
takes the longer piece: the order here, with a look at what follows, comes to the same. What no alternative fits is left
out, and so are all marks that the COCO tokenizer drops anyway, as commas, quotes and lone dashes: they are only named
where they would otherwise be taken for a part of something else.
"""

import re

_LETTERS = (
    # Latin, Greek, Cyrillic, Armenian, with modifiers and combining marks
    r"A-Za-zªµºÀ-ÖØ-öø-\u037d\u037f-\u0386\u0388-\u0481\u0483-\u0588"
    # Hebrew, Arabic and its neighbours
    r"\u0591-\u05bd\u05bf-\u05ea\u0610-\u0613\u0615-\u061a\u0620-\u0669\u066e-\u06d3\u06d5-\u06ff\u070f-\u07f5"
    # India to the extensions of Greek
    r"\u07fa-\u0963\u0966-\u0e3e\u0e40-\u0e4e\u0e50-\u1fbc\u1fbe-\u1fff"
    # superscript i and n, subscript letters, letter-like signs
    r"\u2071\u207f\u2090-\u209c\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2139"
    # China, Japan, Korea, presentation forms, wide forms
    r"\u2c00-\u2dff\u3005\u3031-\u3035\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u318e\u31a0-\u31ba\u31f0-\u31ff"
    r"\u3400-\ud7ff\uf900-\ufdff\ufe70-\ufefc\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc"
)
_SYMBOLS = (
    r"][(){}%&+/<=>@\\^|~$#¡-©¬®-±²³´¶-¹¼-¿×÷\u037e\u0387\u2016\u2017\u201a\u201e\u2020-\u2023\u2030-\u2038\u203b"
    r"\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a0\u20a4\u20ac\u2100-\u214f\u2153-\u215e\u2190-\u2bff"
    r"\u3001\u3002\u3012\u30fb\uff01-\uff65\uffe0-\uffe6"
)
_L = rf"[{_LETTERS}]"
_X = rf"[0-9{_LETTERS}]"
_ASCII = "[A-Za-z0-9]"

_ABBREVIATED = (  # keep their period, whatever follows
    "adj adm adv al ala apr ariz assn assoc asst aug ave bhd bldg blvd brig bros calif capt cf cie cmdr co col colo "
    "comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon "
    "inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mich minn mme mo mon mont mr "
    "mrs ms msgr mt natl neb nev nov oct okla penn pfc ph plc pres prof profs pvt rd rep reps rev rt sen sens sep sept "
    "seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo"
)
_ABBREVIATED_NAMES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"  # likewise, but not where they are words: "mass."
_NUMBERED = "art ca fig figs no nos op pp"  # keep it before a number
_STARTERS = (  # begin a sentence: the period before them is no part of a single letter, as it is in "J. Doe"
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once "
    "One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
)


def _any(words: str) -> str:
    return "|".join(words.split())


# Apostrophes. "d'un" and "o'clock" are one word, "boy's" is two; so are "don't" and "it’s".
_QUOTE = "['’‘`]"
_CLITIC = "(?i:[smd]|ll|re|ve)"
_ELIDED = rf"[dDlLoO]{_QUOTE}(?!(?i:ll|re|ve)(?!{_L})){_L}{{2,}}"

_WORD = rf"{_X}+(?:[-_\u2010\u2011\u058a]{_X}+)*"
_SLASHED = rf"{_ASCII}+(?:-[A-Za-z]+){{0,2}}"
_PATH = r"[^\s\"<>|()]+[^\s\"<>|.!?(){},-]"
_TAG_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = rf" +{_TAG_NAME}(?: ?= ?(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>]+))?"

# Repeats that may fail late have an end: a long line must not be read again from each of its places.
_RULES = (
    # Most words: what stands behind them rules all else out.
    rf"{_ASCII}+(?:[-_]{_ASCII}+)*(?=[ ();%\]]|, |,?$)",
    # Tags, addresses of the web and of persons.
    rf"<!--.{{0,2000}}?-->|<[!?][A-Za-z-][^>]{{0,500}}>|</?{_TAG_NAME}(?:{_ATTRIBUTE}){{0,20}} ?/?>",
    r"<[\w.+-]+@[\w.-]+>",
    rf"(?i:https?)://{_PATH}|(?i:www)\.[\w-]+(?:\.[\w-]+)*(?:/{_PATH})?|(?:[a-z]+\.)+(?:com|org|net|edu)/{_PATH}",
    rf"[\w.+-]{{1,64}}@{_ASCII}(?:[\w.-]{{0,250}}\w)?",
    # do | n't, and words with an apostrophe that stay whole: English, French elisions, any between two vowels.
    rf"{_L}+(?=[nN]['’‘][tT])|[nN]['’‘][tT](?![A-Za-z])|(?i:c'est|e'er|ev'ry|nat'l)(?!{_L})",
    rf"(?:{_X}+[-_]){{0,9}}{_ELIDED}(?:[-_](?:{_ELIDED}|{_X}+))*",
    rf"[nA-XZ]{_QUOTE}(?!(?i:ll|re|ve)(?!{_L})){_L}{{2,}}|(?i:[a-z]+[aeiouy]{_QUOTE}[aeiou][a-z]*)",
    rf"[dDlLjJ]['’](?!{_CLITIC}(?!{_L}))|[yY]['’](?={_L})(?!{_CLITIC}(?!{_L}))",
    # it | 's, rock | 'n' | roll, 't | is, '90s
    rf"(?<!')'{_CLITIC}(?!{_L})|’{_CLITIC}|['’][nN]['’]|'[nN](?= |$)|’[nN]|['’](?i:em|til|cause)|'[tT](?=(?i:is|was))",
    r"['’]\d\d(?:s|(?= |$))",
    # A period or a comma inside: non-U.S., 5.5-cm, U.S.-based, Ph.D., i.v., image.the, a?b
    rf"{_X}[.,0-9{_LETTERS}]{{0,60}}-(?:[A-Za-z]\.){{2,}}|{_ASCII}+[.,][.,A-Za-z0-9]{{0,60}}(?:-{_ASCII}+)+",
    rf"(?i:ph\.d\.?)(?!{_L})|[A-Za-z](?:\.[A-Za-z])+\.(?!{_L})|{_L}{_X}*(?:[.!?]{_L}{_X}*)+",
    # ct/mri, 1/2/2005, 5-1/2
    rf"{_SLASHED}(?:/{_SLASHED}){{1,2}}|\d+-\d+/\d+",
    # A period behind: vs., no. 5, J. Doe, and any word before a comma.
    rf"(?:(?i:{_any(_ABBREVIATED)})|[mM](?:fg|tg)|[pP]t[ey]|{_any(_ABBREVIATED_NAMES)})\.",
    rf"(?:{_any(_ABBREVIATED_NAMES.upper())})\.|(?i:{_any(_NUMBERED)})\.(?= ?\d)",
    rf"[A-Za-z]\.(?! (?=[A-Z])(?i:{_any(_STARTERS)})(?: |$))|{_WORD}\.(?=[,;:])",
    # 1,000.5 and 12:30; C++, H&E, US$; then all other words
    rf"\d+(?:[.,:]\d+)+|[cC](?:\+\+|#)(?!{_X})|[A-Z]+(?:&(?:amp;)?[A-Z]+|\+[A-Z]+)+|(?:US|HK|NZ|CAN|AUS|[A-Z])\$",
    _WORD,
    # Smileys; numbers with a sign, which the last of several dashes or dots is not.
    r"[:;=]['-]?[][(){|@DPpdO](?![A-Za-z0-9])|>:[()]|\^_\^|-_-|>_<",
    r"(?:(?<!-)[-+])?(?:(?<!\.\.)[.,:])?\d+(?:[.,:]\d+)*|-{5,}",
    # Telephone numbers of the USA, #word, @name, entities, runs of a sign, single signs.
    r"\(\d{3}\)[ -]?\d{3}[-. ]\d{4}|#[A-Za-z]+|@[A-Za-z_]\w*",
    r"&(?:(?i:lt|gt|amp|quot|apos|nbsp)|[mn]dash|#\d+|[aeiouAEIOU](?:acute|grave|uml|circ));",
    rf"[!?]+|\*+|_+|#+|<<|>>|[{_SYMBOLS}]",
)
TOKEN = re.compile("|".join(_RULES))
"""Finds the tokens of a line whose white space is single spaces."""
