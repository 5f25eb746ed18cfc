"""The Python door: a loaded checkpoint that captions and embeds pictures. Also what the commands stand on."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from grrcoca_cli.commands.datasets import dicom_reader
from grrcoca_cli.config import GenerationConfig
from grrcoca_cli.data.base import AnyImage, ImageReader, Pixels, as_source, several
from grrcoca_cli.data.captions import clean_caption
from grrcoca_cli.data.images import as_pixels, fit_image, normalize
from grrcoca_cli.errors import UsageError
from grrcoca_cli.model.generate import SpecialTokens, generate
from grrcoca_cli.model.packed import can_pack, pack_for_decoding
from grrcoca_cli.model.text import TextDecoder
from grrcoca_cli.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from grrcoca_cli.training.device import autocast, choose_device, explain_out_of_memory, is_bf16, used_precision


@dataclass(frozen=True)
class Caption:
    """One caption of one picture.

    Attributes:
        text: The caption.
        logprob: Mean log-probability of its tokens, end token included, in nats.
    """

    text: str
    logprob: float


class Captioner:
    """A checkpoint, ready to use; pictures are read exactly as its training read them.

    Attributes:
        checkpoint: What was loaded.
        device: Where it computes.
        read: Reads a picture by the checkpoint's intensity contract; another may be put in its place.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.read: ImageReader = dicom_reader(checkpoint.config.image.window)

    @classmethod
    def load(cls, path: str | bytes | os.PathLike[str], device: str = "auto") -> "Captioner":
        """Load a checkpoint folder, or the newest sound checkpoint of a run folder.

        Raises:
            CheckpointRefused: It is damaged or not a checkpoint.
            UsageError: There is nothing at ``path``, or no such device.
        """
        chosen = choose_device(device)
        return cls(load_checkpoint(find_checkpoint(Path(os.fsdecode(path))), chosen), chosen)

    def caption(self, images: Sequence[AnyImage], *, batch_size: int = 8, **settings: int | float) -> list[str]:
        """The best caption of each image.

        Args:
            images: Paths or bytes of DICOM and image files, or decoded images as `as_pixels` takes them.
            batch_size: Images decoded at once.
            **settings: Fields of `GenerationConfig` that differ from the checkpoint's (``beams=4``).

        Raises:
            UnreadableImage: A file gives no pixels.
            UsageError: Its weights cannot be decoded with as ``generation.weights`` asks.
        """
        chosen = GenerationConfig.model_validate(self.checkpoint.config.generation.model_dump() | settings)
        texts: list[str] = []
        chosen_images = list(several(images, "images"))
        for start in range(0, len(chosen_images), batch_size):
            pixels = [self._pixels(image) for image in chosen_images[start : start + batch_size]]
            texts += [captions[0].text for captions in self.caption_pixels(pixels, chosen)]
        return texts

    def caption_pixels(
        self, pixels: Sequence[Pixels], settings: GenerationConfig | None = None, *, seed_offset: int = 0
    ) -> list[list[Caption]]:
        """Captions of each picture (C, H, W) in [0, 1], best first; ``seed_offset`` varies the sampling by batch."""
        with (
            explain_out_of_memory(f"{len(pixels)} pictures at once"),
            torch.inference_mode(),
            autocast(self.device, "auto"),
        ):
            memory, _ = self.checkpoint.model.encode_image(self.prepare(pixels))
        return self.caption_memory(memory, settings, seed_offset=seed_offset)

    def caption_memory(
        self, memory: Tensor, settings: GenerationConfig | None = None, *, seed_offset: int = 0
    ) -> list[list[Caption]]:
        """`caption_pixels` for pictures that are encoded already: ``memory`` (B, Q, Dm) of `CoCa.encode_image`."""
        settings = settings or self.checkpoint.config.generation
        tokenizer = self.checkpoint.tokenizer
        special = SpecialTokens(tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
        generator = torch.Generator(self.device).manual_seed(settings.seed + seed_offset)
        if not is_bf16(self.device, "auto"):
            memory = memory.float()  # encoded in bf16 where training.precision asks for it
        with explain_out_of_memory(f"captions of {len(memory)} pictures at once"), autocast(self.device, "auto"):
            text = self._packed_text if self._packs(settings) else None
            found = generate(self.checkpoint.model, memory, special, settings, generator, text=text)
        return [
            [Caption(clean_caption(tokenizer.decode(c.tokens)), sum(c.logprobs) / len(c.logprobs)) for c in captions]
            for captions in found
        ]

    @functools.cached_property
    def _packed_text(self) -> TextDecoder:
        return pack_for_decoding(self.checkpoint.model.text_decoder)

    @functools.cached_property
    def _can_pack(self) -> bool:
        return can_pack(self.checkpoint.model.text_decoder)

    def _packs(self, settings: GenerationConfig) -> bool:
        if settings.weights == "float16" and not self._can_pack:
            raise UsageError('generation.weights = "float16" needs an x86 CPU and finite weights: set it to "auto"')
        return settings.weights != "float32" and self._can_pack

    def numerics(self, precision: str, settings: GenerationConfig) -> dict[str, str]:
        """Device and precision of losses (``precision`` asks for it) and captions, as they are used here.

        Raises:
            UsageError: Its weights cannot be decoded with as ``generation.weights`` asks.
        """
        return {
            "device": self.device.type,
            "precision": used_precision(self.device, precision),
            "caption_precision": used_precision(self.device, "auto"),
            "caption_weights": "float16" if self._packs(settings) else "float32",
        }

    def encode_image(self, images: Sequence[AnyImage]) -> Tensor:
        """Unit embeddings (B, E) of images, given as to `caption`, on the CPU."""
        with torch.inference_mode(), autocast(self.device, "auto"):
            inputs = self.prepare([self._pixels(image) for image in several(images, "images")])
            return self.checkpoint.model.encode_image(inputs)[1].cpu()

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Unit embeddings (B, E) of captions, on the CPU; their product with `encode_image`'s is the similarity."""
        tokenizer, length = self.checkpoint.tokenizer, self.checkpoint.config.model.context_length
        rows = [torch.tensor(tokenizer.encode(caption, length)) for caption in several(captions, "captions")]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_id)
        with torch.inference_mode(), autocast(self.device, "auto"):
            return self.checkpoint.model.encode_text(tokens.to(self.device), tokenizer.pad_id)[1].cpu()

    def __repr__(self) -> str:
        model = self.checkpoint.config.model
        return f"Captioner({str(self.checkpoint.folder)!r}, {model.variant} {model.size}, on {self.device})"

    def _pixels(self, image: AnyImage) -> Pixels:
        if isinstance(image, str | bytes | os.PathLike):
            return self.read(as_source(image))
        return as_pixels(image)

    def prepare(self, pixels: Sequence[Pixels]) -> Tensor:
        """Pictures (C, H, W) in [0, 1] as the model's input (B, 3, S, S), by the checkpoint's contract."""
        contract = self.checkpoint.config.image
        images = torch.stack([fit_image(picture, contract.size, contract.fit) for picture in pixels])
        return normalize(images, contract.mean, contract.std).to(self.device)
