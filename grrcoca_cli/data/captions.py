"""What is done to a caption's text, the same for every data set."""

import re

# Python's \s covers every Unicode blank, tab and line separator; \x00-\x1f\x7f-\x9f are the control characters;
# the last three (zero-width space, word joiner, byte order mark) have no width but do break words apart.
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\u2060\ufeff]+")

_LONE_SURROGATES = re.compile(r"[\ud800-\udfff]")  # half a character, out of a JSON escape: UTF-8 cannot hold it


def clean_caption(text: str) -> str:
    """The caption on one line: each run of blanks and control characters is one blank, none at either end.

    Half characters become U+FFFD. Nothing else changes: no case folding, no Unicode normalisation, so that
    ``"4.3 × 3.7 cm"`` stays as written.
    """
    return _LONE_SURROGATES.sub("\ufffd", _BLANKS.sub(" ", text)).strip(" ")
