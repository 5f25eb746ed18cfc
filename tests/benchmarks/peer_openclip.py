"""The peers' side of the benchmark: open_clip's CoCa, and a cached captioner of HF transformers. Runs in .venv-peer."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import CoCaLoss
from peer_protocol import Answer, Work, facts, serve

TOKENS = 76
VOCABULARY = 49_408


def prepare(settings: dict[str, Any]) -> tuple[Work, Answer]:
    """The work named by ``settings``, and what is known of it beforehand."""
    torch.manual_seed(0)
    device = torch.device(settings.get("device", "cpu"))
    works: dict[str, Callable[..., tuple[Work, Answer]]] = {
        "train": train,
        "caption": caption,
        "hf-caption": hf_caption,
        "lengths": caption_lengths,
    }
    return works[settings["work"]](settings, device)


def wait_for(device: torch.device) -> None:
    """Return once ``device`` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build(device: torch.device) -> Any:
    """``coca_ViT-B-32`` with random weights; its vocabulary head is uninitialised memory and is filled here."""
    model = open_clip.create_model("coca_ViT-B-32", pretrained=None, device=device)
    with torch.no_grad():
        model.text_decoder.text_projection.normal_(std=0.02)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return model


def train(settings: dict[str, Any], device: torch.device) -> tuple[Work, Answer]:
    """A training step as open_clip_train makes it: forward, both losses, backward, AdamW."""
    model = build(device).train()
    model.set_grad_checkpointing(settings.get("checkpointing", False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.2)
    loss_of = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
    images = torch.randn(settings["batch"], 3, 224, 224, device=device)
    tokens = torch.randint(1, VOCABULARY, (settings["batch"], TOKENS), device=device)

    def forward_backward() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings["precision"] == "bf16"):
            output = model(images, tokens)
            losses = loss_of(**output)
        sum(losses).backward()
        wait_for(device)

    def step() -> None:
        forward_backward()
        optimizer.step()
        wait_for(device)

    return step, facts(model, forward_backward, settings)


def caption(settings: dict[str, Any], device: torch.device) -> tuple[Work, Answer]:
    """Captions of exactly ``tokens`` tokens, from pictures."""
    model = build(device).eval()
    images = torch.randn(settings["images"], 3, 224, 224, device=device)
    length = settings["tokens"] + 1  # the begin token counts here
    how: dict[str, Any] = {"generation_type": "top_k", "top_k": 1}
    if settings["beams"] > 1:
        how = {"generation_type": "beam_search", "num_beams": settings["beams"], "num_beam_groups": 1}

    def work() -> None:
        found = model.generate(images, seq_len=length, min_seq_len=length - 1, **how)
        assert found.shape[1] >= length - 1, found.shape

    return work, facts(model)


def hf_caption(settings: dict[str, Any], device: torch.device) -> tuple[Work, Answer]:
    """The same with transformers' ViT-B/16 and GPT-2, which keep keys and values."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), GPT2Config())
    model = VisionEncoderDecoderModel(config).eval().to(device)
    images = torch.randn(settings["images"], 3, 224, 224, device=device)
    count = settings["tokens"]

    def work() -> None:
        with torch.inference_mode():
            found = model.generate(
                images,
                max_new_tokens=count,
                min_new_tokens=count,
                num_beams=settings["beams"],
                do_sample=False,
                decoder_start_token_id=50_256,
                pad_token_id=50_256,
                use_cache=True,
            )
        assert found.shape[1] == count + 1, found.shape

    return work, facts(model)


def caption_lengths(settings: dict[str, Any], device: torch.device) -> tuple[Work, Answer]:
    """Token counts, begin and end token included, of real captions in random order: those both sides train on."""
    tokenizer = open_clip.get_tokenizer("coca_ViT-B-32")
    captions: list[str] = []
    for path in sorted(Path(settings["data"]).glob("data/*/radiology/captions.txt")):
        captions += [line.partition("\t")[2] for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(captions)
    rows = tokenizer(captions[: settings["count"]], context_length=TOKENS)
    return (lambda: None), {"lengths": (rows != 0).sum(dim=1).tolist()}


if __name__ == "__main__":
    serve(prepare)
