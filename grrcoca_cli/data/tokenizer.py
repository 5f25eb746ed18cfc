"""Captions as token ids: byte-level BPE, trained on the training captions, lossless on any text."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from grrcoca_cli.errors import CheckpointRefused, UsageError

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
"""Names of the special tokens; a position here is an id. The one place where they are set."""

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
"""One token a byte and the special ones: below it some text could not be written."""


class CaptionTokenizer:
    """Byte-level BPE (Sennrich et al., 2016, over bytes as in Radford et al., 2019) without a normaliser.

    Every caption comes back exactly as it went in, whatever its script. The text of a special token inside a caption
    stays text.

    Attributes:
        pad_id, bos_id, eos_id: Ids of the special tokens.
    """

    pad_id = PAD_ID
    bos_id = BOS_ID
    eos_id = EOS_ID

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_bytes = _bytes_by_id(tokenizer)

    def __getstate__(self) -> str:
        return self._tokenizer.to_str()

    def __setstate__(self, state: str) -> None:
        self.__init__(_from_json(state))  # type: ignore[misc]  # pickles hold the JSON alone

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> Self:
        """Learn merges from ``captions``; the same captions give the same tokenizer.

        Args:
            captions: Training captions, read once.
            vocab_size: Most tokens, special ones included; few captions give fewer.

        Raises:
            UsageError: ``vocab_size`` is below `SMALLEST_VOCABULARY`.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise UsageError(
                f"vocab_size {vocab_size} is too small: bytes and special tokens need {SMALLEST_VOCABULARY}"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(_from_json(tokenizer.to_str()))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a ``tokenizer.json`` that `save` wrote.

        Raises:
            UsageError: There is no such file.
            CheckpointRefused: The file is damaged, or a tokenizer of another kind.
        """
        if not path.is_file():
            raise UsageError(f"no tokenizer at {path}")
        try:
            tokenizer = _from_json(path.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception for anything it cannot parse
            raise CheckpointRefused(f"{path} is damaged: it is not a tokenizer in JSON") from error
        if reason := _why_foreign(tokenizer):
            raise CheckpointRefused(f"{path} is not a tokenizer of ours: {reason}; train one with `grrcoca pretrain`")
        return cls(tokenizer)

    def save(self, path: Path) -> None:
        """Write the tokenizer as JSON to ``path``, by custom ``tokenizer.json``."""
        path.write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """What `save` writes."""
        text: str = self._tokenizer.to_str(pretty=True)
        return text

    @property
    def vocab_size(self) -> int:
        """Count of ids, special ones included."""
        return len(self._token_bytes)

    def count(self, caption: str) -> int:
        """Tokens of the whole caption, begin and end included; above the context length it will be truncated."""
        return len(self._tokenizer.encode(caption)) + 2

    def encode(self, caption: str, context_length: int) -> list[int]:
        """Ids of ``caption`` between ``bos_id`` and ``eos_id``: at most ``context_length``, the end always kept."""
        ids: list[int] = self._tokenizer.encode(caption).ids
        return [BOS_ID, *ids[: context_length - 2], EOS_ID]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` up to the first ``eos_id``, special ids left out.

        Bytes that are not UTF-8, as where a character was cut off, are dropped.
        """
        kept = list(ids)
        if EOS_ID in kept:
            kept = kept[: kept.index(EOS_ID)]
        return b"".join(self._token_bytes[token] for token in kept).decode("utf-8", errors="ignore")


def _from_json(text: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True  # "<eos>" in a caption is five characters; not part of the JSON
    return tokenizer


def _why_foreign(tokenizer: Tokenizer) -> str:
    """What makes the tokenizer another than `train` gives, or an empty string."""
    vocabulary = tokenizer.get_vocab()
    if not isinstance(tokenizer.model, models.BPE) or not isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return "it is not byte-level BPE"
    if tokenizer.normalizer or tokenizer.post_processor or tokenizer.truncation or tokenizer.padding:
        return "it normalises, truncates, pads or adds to the text"
    if [vocabulary.get(name) for name in SPECIAL_TOKENS] != list(range(len(SPECIAL_TOKENS))):
        return f"its special tokens are not {', '.join(SPECIAL_TOKENS)} at ids 0 to {len(SPECIAL_TOKENS) - 1}"
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        return "its ids have gaps"
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if alphabet - vocabulary.keys() or set().union(*vocabulary.keys() - set(SPECIAL_TOKENS)) - alphabet:
        return "its tokens are not made of bytes"
    return ""


def _bytes_by_id(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes that each id stands for; none for a special id."""
    byte_of = _byte_of_character()
    names = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [b"" if token < len(SPECIAL_TOKENS) else bytes(map(byte_of.__getitem__, name)) for name, token in names]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet backwards: printable Latin-1 stands for itself, the other bytes for U+0100 and up."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(plain))
    return {chr(byte): byte for byte in plain} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}
