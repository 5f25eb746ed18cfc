import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grrcoca_cli.data.captions import clean_caption


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (" CT\tof the\r\n chest \n", "CT of the chest"),
        ("4.3\u00a0× 3.7\u2009cm", "4.3 × 3.7 cm"),
        ("one\u2028two\u0085three\x00four\x7f", "one two three four"),
        ("\ufeffzero\u200bwidth", "zero width"),
        ("half \ud83d a character", "half \ufffd a character"),
        ("é stays decomposed: e\u0301", "é stays decomposed: e\u0301"),
        (" \t\u00a0\n", ""),
    ],
)
def test_clean_caption(raw: str, clean: str) -> None:
    assert clean_caption(raw) == clean


@given(st.text(st.characters()))  # lone surrogates among them
def test_a_clean_caption_is_one_line_of_the_same_letters(text: str) -> None:
    clean = clean_caption(text)
    assert clean == clean_caption(clean)
    assert not any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in clean)
    assert "  " not in clean
    assert [c for c in clean if c.isalnum()] == [c for c in text if c.isalnum()]
