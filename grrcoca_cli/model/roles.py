"""What each parameter is: how it starts, whether it decays, whether Muon updates it, and which part it belongs to.

One table for everything that treats parameters differently. A parameter that no row names is an error, so that a new
part of the model cannot be trained before somebody has decided these four things.
"""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

Initial = Literal["temperature", "pair_bias", "normal", "positions", "embedding", "zero", "one", "matrix", "branch_end"]
Part = Literal["image", "poolers", "text", "head"]


class _Row(NamedTuple):
    pattern: str  # matches the whole name
    initial: Initial
    decays: bool
    muon: bool  # a hidden matrix: Muon updates it where the recipe asks for Muon


_TOWER = r"(image_encoder|text_decoder)"
_POOLER = r"(generative|contrastive)_pooler"

# The first row that matches decides.
_ROWS = (
    _Row(r"logit_scale", "temperature", decays=False, muon=False),
    _Row(r"logit_bias", "pair_bias", decays=False, muon=False),
    _Row(_POOLER + r"\.queries", "normal", decays=False, muon=False),
    _Row(_TOWER + r"\.positions", "positions", decays=False, muon=False),
    _Row(r"text_decoder\.(cls|token_embedding\.weight)", "embedding", decays=False, muon=False),
    _Row(r"text_decoder\.head\.weight", "embedding", decays=True, muon=False),
    _Row(r".+\.bias", "zero", decays=False, muon=False),
    _Row(r".+[._]norm\.weight", "one", decays=False, muon=False),
    _Row(r"image_encoder\.patch_embedding\.weight", "matrix", decays=True, muon=False),
    _Row(r"(image|text)_projection\.weight", "matrix", decays=True, muon=False),
    _Row(_TOWER + r"\..+\.(out|down)\.weight", "branch_end", decays=True, muon=True),
    _Row(r".+\.(qkv|query|key_value|out|up|gate_up)\.weight", "matrix", decays=True, muon=True),
)

_PARTS: tuple[tuple[str, Part], ...] = (
    (r"image_encoder\..+", "image"),
    (_POOLER + r"\..+|image_projection\.weight|logit_(scale|bias)", "poolers"),
    (r"text_decoder\.head\.weight", "head"),
    (r"text_decoder\..+|text_projection\.weight", "text"),
)


@dataclass(frozen=True)
class Role:
    """What a parameter is.

    Attributes:
        initial: How it starts; `init_weights` explains the kinds.
        decays: Whether weight decay applies.
        muon: Whether it is a hidden matrix, which Muon updates.
        part: Its learning-rate group. The temperature belongs to the poolers, the vocabulary head to itself.
    """

    initial: Initial
    decays: bool
    muon: bool
    part: Part


def role_of(name: str) -> Role:
    """The role of the parameter called ``name`` in a `CoCa`.

    Raises:
        LookupError: No row of the table matches.
    """
    row = next((row for row in _ROWS if re.fullmatch(row.pattern, name)), None)
    part = next((part for pattern, part in _PARTS if re.fullmatch(pattern, name)), None)
    if row is None or part is None:
        raise LookupError(f"parameter {name} has no role: add it to the tables in {__name__}")
    return Role(row.initial, row.decays, row.muon, part)
