import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers

from grrcoca_cli.data.tokenizer import SMALLEST_VOCABULARY, SPECIAL_TOKENS, CaptionTokenizer
from grrcoca_cli.errors import CheckpointRefused, UsageError

CAPTIONS = [f"Chest radiograph {number}: a nodule of 4.3 × 3.7 cm in the left upper lobe." for number in range(50)]


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.train(CAPTIONS, 400)


def test_every_real_caption_comes_back(shared_data: Path) -> None:
    captions = [
        line.partition("\t")[2]
        for path in sorted((shared_data / "roco-v1-text").rglob("captions.txt"))
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]
    assert len(captions) > 7_000
    trained = CaptionTokenizer.train(captions[:2_000], 2_000)
    assert trained.vocab_size == 2_000
    assert all(trained.decode(trained.encode(caption, 10_000)) == caption for caption in captions)


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer: CaptionTokenizer, text: str) -> None:
    ids = tokenizer.encode(text, 10_000)
    assert tokenizer.decode(ids) == text
    assert len(ids) == tokenizer.count(text)
    assert min(ids[1:-1], default=3) >= len(SPECIAL_TOKENS)


@pytest.mark.parametrize("text", ["<eos>", "a <pad> b<bos><eos> c", "<PERSON> walks", "\ufffd", "\0"])
def test_the_text_of_a_special_token_is_text(tokenizer: CaptionTokenizer, text: str) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    for each in (tokenizer, again):
        ids = each.encode(text, 99)
        assert each.decode(ids) == text
        assert not set(ids[1:-1]) & {0, 1, 2}


@pytest.mark.parametrize("context_length", [2, 3, 5, 200])
def test_truncation_keeps_begin_and_end(tokenizer: CaptionTokenizer, context_length: int) -> None:
    ids = tokenizer.encode(CAPTIONS[0], context_length)
    assert ids[0] == tokenizer.bos_id
    assert ids[-1] == tokenizer.eos_id
    assert len(ids) == min(context_length, tokenizer.count(CAPTIONS[0]))
    assert CAPTIONS[0].startswith(tokenizer.decode(ids))


def test_decoding_stops_at_the_end_and_drops_half_characters(tokenizer: CaptionTokenizer) -> None:
    cross = tokenizer.encode("\u4e2d", 99)[1:-1]
    assert len(cross) == 3  # bytes of a character that no caption has
    assert tokenizer.decode([1, *cross[:2], 2]) == ""
    letter = tokenizer.encode("a", 99)[1:-1]
    assert tokenizer.decode([1, 0, *letter, *cross[:1], *letter, 0, 2, *letter]) == "aa"


def test_training_is_deterministic_and_bounded() -> None:
    first, second = (CaptionTokenizer.train(iter(CAPTIONS), 300) for _ in range(2))
    assert first.encode(CAPTIONS[3], 99) == second.encode(CAPTIONS[3], 99)
    assert pickle.dumps(first) == pickle.dumps(second)
    assert first.vocab_size == 300
    assert CaptionTokenizer.train([], SMALLEST_VOCABULARY).vocab_size == SMALLEST_VOCABULARY
    with pytest.raises(UsageError, match="258"):
        CaptionTokenizer.train(CAPTIONS, 258)


def test_save_and_load(tokenizer: CaptionTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = CaptionTokenizer.load(path)
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode("a <eos> nodule", 99) == tokenizer.encode("a <eos> nodule", 99)
    with pytest.raises(UsageError, match="no tokenizer"):
        CaptionTokenizer.load(tmp_path / "none.json")


def test_damaged_and_foreign_files_are_refused(tokenizer: CaptionTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    text = path.read_text(encoding="utf-8")
    for damaged in (text[: len(text) // 2], "", "{}", "\x80", '{"version": "1.0", "model": {"type": "WordLevel"}}'):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(CheckpointRefused, match="damaged"):
            CaptionTokenizer.load(path)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(CheckpointRefused, match="not byte-level BPE"):
        CaptionTokenizer.load(path)
    lowering = Tokenizer.from_str(text)
    lowering.normalizer = normalizers.Lowercase()
    lowering.save(str(path))
    with pytest.raises(CheckpointRefused, match="normalises"):
        CaptionTokenizer.load(path)
    path.write_text(text.replace("<bos>", "<start>"), encoding="utf-8")
    with pytest.raises(CheckpointRefused, match="special tokens"):
        CaptionTokenizer.load(path)
    values = json.loads(text)
    values["model"]["vocab"]["\u4e2d"] = len(values["model"]["vocab"])
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointRefused, match="made of bytes"):
        CaptionTokenizer.load(path)
