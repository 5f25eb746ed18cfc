"""What a training step computes and keeps: matrix products and saved activations, counted from the configuration.

Elementwise work is left out of the products, as is usual; below a few per cent at any size of use.
"""

from dataclasses import dataclass

import torch
from torch import nn

from grrcoca_cli.config import ModelConfig
from grrcoca_cli.model.coca import CoCa

FLOAT32 = 4


@dataclass(frozen=True)
class Lengths:
    """How many vectors of each kind a pair has.

    Attributes:
        pixels: Patches of the picture.
        patches: Those of them that the encoder's blocks see in training: patch dropout taken off.
        memory: Image tokens that the captioner reads.
        tokens: Text tokens, begin and end included; a mean may be no whole number.
    """

    pixels: int
    patches: int
    memory: int
    tokens: float


def lengths(config: ModelConfig, tokens: float) -> Lengths:
    """Of a pair whose caption has ``tokens`` tokens, begin and end included."""
    pixels = (config.image_size // config.patch_size) ** 2
    patches = max(1, round(pixels * (1 - config.patch_dropout)))
    return Lengths(pixels, patches, patches if config.generative_pooler == "none" else config.pooler_queries, tokens)


def meta_model(config: ModelConfig) -> CoCa:
    """The model without memory for its weights: names and shapes."""
    with torch.device("meta"):
        return CoCa(config)


def step_flops(model: CoCa, pairs: int, tokens: float, *, contrastive: int) -> float:
    """Floating-point operations of the matrix products in a forward and backward pass over ``pairs`` pairs.

    A multiplication with its addition counts as two. The backward pass costs twice the forward one, except where
    nothing below needs a gradient: at the first layer, and in a frozen image encoder. Gradient checkpointing adds the
    blocks' forward pass once more. Masked-out halves of causal attention count in full.

    Args:
        model: On any device, ``meta`` included; what is frozen in it, counts as such.
        pairs: Pictures with their captions, over all devices.
        tokens: Of every caption, begin and end included.
        contrastive: Pairs that compete with each other.
    """
    config, size = model.config, lengths(model.config, tokens)
    total = 2.0 * contrastive * config.embed_dim * 3  # per pair: one row of similarities
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            forward = 2 * module.weight.numel() * _rows(name, config, size)
            once = "pooler.attention.query" in name  # learned queries are the same of every pair
            total += forward * _passes(name, model, trained=module.weight.requires_grad) / (pairs if once else 1)
    for name, queries, keys, width, layers in _attentions(config, size):
        trained = not name.startswith("image_encoder.") or model.image_encoder.norm.weight.requires_grad
        total += layers * 4 * queries * keys * width * _passes(name, model, trained=bool(trained))
    return pairs * total


def _passes(name: str, model: CoCa, *, trained: bool) -> int:
    """How often a layer's forward cost is paid in a step."""
    if not trained:
        return 1
    in_block = ".blocks." in name or ".unimodal." in name or ".multimodal." in name
    # An MLP's last product gives nothing that its backward pass reads; a GEGLU layer's is computed with its gate.
    kind = model.config.image_mlp if name.startswith("image_encoder.") else model.config.text_mlp
    kept = name.endswith(".down") and kind == "gelu"
    again = 1 if model.config.gradient_checkpointing and in_block and not kept else 0
    reads_frozen = (
        name.endswith("cross_attention.key_value")
        and model.config.generative_pooler == "none"
        and not model.image_encoder.norm.weight.requires_grad
    )
    return (2 if reads_frozen or name.endswith("patch_embedding") else 3) + again


def _rows(name: str, config: ModelConfig, size: Lengths) -> float:
    """Rows that the linear layer of that name multiplies, for one pair."""
    part, last = name.split(".")[0], name.split(".")[-1]
    if part == "image_encoder":
        return size.pixels if last == "patch_embedding" else size.patches
    if part == "generative_pooler":
        return size.patches if last == "key_value" else config.pooler_queries
    if part == "contrastive_pooler":
        return _contrastive_memory(config, size) if last == "key_value" else 1
    if part in ("image_projection", "text_projection"):
        return 1
    if ".unimodal." in name:
        return size.tokens + 1  # [CLS]
    return size.memory if last == "key_value" else size.tokens - 1  # the last token predicts nothing


def _contrastive_memory(config: ModelConfig, size: Lengths) -> int:
    return size.memory if config.generative_pooler == "cascade" else size.patches


def _attentions(config: ModelConfig, size: Lengths) -> list[tuple[str, float, float, int, int]]:
    """Name, queries, keys, width and count of each kind of attention layer, for one pair."""
    decoded, width = size.tokens - 1, config.text_width
    found: list[tuple[str, float, float, int, int]] = [
        ("image_encoder.blocks.", size.patches, size.patches, config.image_width, config.image_layers),
        ("contrastive_pooler", 1, _contrastive_memory(config, size), width, 1),
        ("text_decoder.unimodal.", size.tokens + 1, size.tokens + 1, width, config.unimodal_layers),
        ("text_decoder.multimodal.", decoded, decoded + size.memory, width, config.multimodal_layers),
    ]
    if config.generative_pooler != "none":
        found.append(("generative_pooler", config.pooler_queries, size.patches, width, 1))
    return found


def activation_bytes(config: ModelConfig, tokens: float, *, half: bool, frozen_image: bool = False) -> float:
    """Bytes a pair that the forward pass keeps for the backward pass.

    Args:
        config: The model; with ``gradient_checkpointing`` a block keeps its input alone, and one block at a time all.
        tokens: Of the padded caption, begin and end included.
        half: Autocast to 16 bits: what matrix products read is kept in 16, what norms read in 32.
        frozen_image: The image encoder keeps nothing but its output.
    """
    size = lengths(config, tokens)
    narrow = 2 if half else FLOAT32
    image = size.patches * config.image_width
    total = 0.0
    if not frozen_image:
        block = image * _block_bytes(config, "image", narrow)
        total += _stack(config, config.image_layers, block, image)
        total += size.pixels * 3 * config.patch_size**2 * narrow + image * FLOAT32  # pixels in, final norm
    total += _pooler_bytes(config, size, narrow)
    text = config.text_width
    unimodal, decoded = (size.tokens + 1) * text, (size.tokens - 1) * text
    block = _block_bytes(config, "text", narrow)
    total += _stack(config, config.unimodal_layers, unimodal * block, unimodal)
    # Keys and values of the image; in half precision each layer also keeps its own copy of what it read.
    image_read = size.memory * (2 * text + (text if half else 0)) * narrow
    crossing = decoded * (FLOAT32 + 3 * narrow) + image_read
    total += _stack(config, config.multimodal_layers, decoded * block + crossing, decoded)
    return total + decoded * (2 * FLOAT32 + narrow)  # into the final norm and the head, and the gradient there


def _stack(config: ModelConfig, layers: int, block: float, block_input: float) -> float:
    return layers * block_input * FLOAT32 + block if config.gradient_checkpointing else layers * block


def _block_bytes(config: ModelConfig, tower: str, narrow: int) -> float:
    """Bytes a channel and token of a self-attention block: two norms, attention, feed-forward layer."""
    rope = getattr(config, f"{tower}_positions") != "learned"
    # Queries, keys, values and the output; what is normalised per head is kept before and behind it.
    attention = 4 + (1 if rope else 0) + (3 if config.qk_norm else 0)
    geglu = 4.0 if config.geglu == "wide" else 8 / 3
    mlp = 8 if getattr(config, f"{tower}_mlp") == "gelu" else 2 * geglu
    return 2 * (FLOAT32 + narrow) + (attention + mlp) * narrow


def _pooler_bytes(config: ModelConfig, size: Lengths, narrow: int) -> float:
    text, image = config.text_width, size.patches * config.image_width
    total = float(image * FLOAT32)  # the encoder's output
    if config.generative_pooler != "none":
        total += image * narrow + size.patches * 2 * text * narrow
        total += config.pooler_queries * text * (3 * narrow + 2 * FLOAT32)
    memory = _contrastive_memory(config, size)
    width = text if config.generative_pooler == "cascade" else config.image_width
    return total + memory * (width + 2 * text) * narrow
