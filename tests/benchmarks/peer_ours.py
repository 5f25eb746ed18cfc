"""Our side of the benchmark, at the peer's sizes: see `peer_openclip.py` for what each work is."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from peer_protocol import Answer, Work, facts, serve
from torch import Tensor

from grrcoca_cli.config import GenerationConfig, ModelConfig, TrainingConfig
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.generate import SpecialTokens, generate
from grrcoca_cli.model.losses import Pairs
from grrcoca_cli.model.packed import can_pack, pack_for_decoding
from grrcoca_cli.training.device import autocast
from grrcoca_cli.training.optimizer import make_optimizers

TOKENS = 76
VOCABULARY = 49_408
EQUAL_SIZE = {
    **{"size": "base", "image_size": 224, "patch_size": 32, "text_width": 512, "text_heads": 8},
    **{"unimodal_layers": 12, "multimodal_layers": 12, "vocab_size": VOCABULARY, "context_length": 77},
    **{"pooler_queries": 256, "embed_dim": 512},
}


def prepare(settings: dict[str, Any]) -> tuple[Work, Answer]:
    """The work named by ``settings``, and what is known of it beforehand."""
    torch.manual_seed(0)
    device = torch.device(settings.get("device", "cpu"))
    works: dict[str, Callable[..., tuple[Work, Answer]]] = {"train": train, "caption": caption}
    return works[settings["work"]](settings, device)


def build(device: torch.device, **settings: object) -> CoCa:
    """A GRR-CoCa of the peer's sizes."""
    return CoCa(ModelConfig.model_validate({**EQUAL_SIZE, **settings})).to(device)


def random_tokens(lengths: list[int]) -> Tensor:
    """Rows of random ids (B, L) of these lengths, padded with 0 to the longest."""
    tokens = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)))
    return tokens.masked_fill(torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1), 0)


def train(settings: dict[str, Any], device: torch.device) -> tuple[Work, Answer]:
    """A training step; with ``lengths``, the next batch of captions of those lengths at each step."""
    model = build(device, gradient_checkpointing=settings.get("checkpointing", False)).train()
    optimizers = make_optimizers(model, TrainingConfig())
    batch = settings["batch"]
    images = torch.randn(batch, 3, 224, 224, device=device)
    lengths = settings.get("lengths") or [settings.get("length", TOKENS)] * batch
    parts = [lengths[start : start + batch] for start in range(0, len(lengths) - batch + 1, batch)]
    batches = itertools.cycle([random_tokens(part) for part in parts])

    def forward_backward() -> None:
        tokens = next(batches).to(device)
        with autocast(device, settings["precision"]):
            output = model(images, tokens, 0)
        pairs = model.pair_loss(Pairs.alone(output.image_features, output.text_features))
        (2 * output.nll / (tokens[:, 1:] != 0).sum() + pairs).backward()
        wait_for(device)

    def step() -> None:
        forward_backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        wait_for(device)

    return step, facts(model, forward_backward, settings)


def caption(settings: dict[str, Any], device: torch.device) -> tuple[Work, Answer]:
    """Captions of exactly ``tokens`` tokens, from pictures."""
    model = build(device, context_length=settings.get("context", 77)).eval()
    images = torch.randn(settings["images"], 3, 224, 224, device=device)
    count = settings["tokens"]
    decoding = GenerationConfig(beams=settings["beams"], min_tokens=count, max_tokens=count)
    special = SpecialTokens(pad=0, bos=1, eos=2)

    text = pack_for_decoding(model.text_decoder) if can_pack(model.text_decoder) else None  # as `Captioner` does

    def work() -> None:
        with torch.inference_mode(), autocast(device, "auto"):
            memory, _ = model.encode_image(images)
            found = generate(model, memory, special, decoding, text=text)
        assert {len(captions[0].tokens) for captions in found} == {count}

    return work, facts(model)


def wait_for(device: torch.device) -> None:
    """Return once ``device`` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    serve(prepare)
