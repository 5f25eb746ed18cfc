"""Every knob, once: frozen models that refuse unknown names, filled from TOML recipes and ``--set``."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from grrcoca_cli.errors import UsageError

NormKind = Literal["rmsnorm", "layernorm"]
MLPKind = Literal["geglu", "gelu"]
PositionKind = Literal["rope", "learned"]
DatasetKind = Literal["shards", "folder", "roco", "coco", "flickr30k", "phantoms"]

VARIANTS: dict[str, dict[str, str]] = {
    "grr-coca": {
        **{"image_norm": "rmsnorm", "image_mlp": "geglu", "image_positions": "rope"},
        **{"text_norm": "rmsnorm", "text_mlp": "geglu", "text_positions": "rope"},
    },
    "baseline-coca": {
        **{"image_norm": "layernorm", "image_mlp": "gelu", "image_positions": "learned"},
        **{"text_norm": "rmsnorm", "text_mlp": "geglu", "text_positions": "rope"},
    },
    "coca": {
        **{"image_norm": "layernorm", "image_mlp": "gelu", "image_positions": "learned"},
        **{"text_norm": "layernorm", "text_mlp": "gelu", "text_positions": "learned"},
    },
}

SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        **{"image_size": 64, "patch_size": 8, "image_width": 96, "image_layers": 4, "image_heads": 4},
        **{"text_width": 96, "unimodal_layers": 2, "multimodal_layers": 2, "text_heads": 4},
        **{"embed_dim": 96, "pooler_queries": 32},
    },
    "small": {
        **{"image_size": 224, "patch_size": 16, "image_width": 384, "image_layers": 12, "image_heads": 6},
        **{"text_width": 384, "unimodal_layers": 4, "multimodal_layers": 4, "text_heads": 6},
        **{"embed_dim": 384, "pooler_queries": 64},
    },
    "base": {
        **{"image_size": 224, "patch_size": 16, "image_width": 768, "image_layers": 12, "image_heads": 12},
        **{"text_width": 768, "unimodal_layers": 6, "multimodal_layers": 6, "text_heads": 12},
        **{"embed_dim": 512, "pooler_queries": 256},
    },
    "base-12": {
        **{"image_size": 224, "patch_size": 16, "image_width": 768, "image_layers": 12, "image_heads": 12},
        **{"text_width": 768, "unimodal_layers": 12, "multimodal_layers": 12, "text_heads": 12},
        **{"embed_dim": 512, "pooler_queries": 256},
    },
    "large": {
        **{"image_size": 224, "patch_size": 16, "image_width": 1024, "image_layers": 24, "image_heads": 16},
        **{"text_width": 1024, "unimodal_layers": 12, "multimodal_layers": 12, "text_heads": 16},
        **{"embed_dim": 768, "pooler_queries": 256},
    },
}


class Section(BaseModel):
    """Base of every table in a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    """One architecture. ``variant`` and ``size`` fill whatever is not set by name; our defaults, not the paper's.

    Attributes:
        variant: ``grr-coca``, ``baseline-coca`` (the paper's Baseline) or ``coca`` (Yu et al., 2022).
        size: ``tiny``, ``small``, ``base``, ``base-12`` or ``large``.
        image_positions: ``rope``, ``learned``, or ``both``: RoPE alone says where a patch lies in the picture only by
            how far the edges are.
        geglu: ``matched`` keeps a GEGLU layer at the parameter count of the 4D MLP; ``wide`` keeps its hidden width.
        rope: ``raster`` rotates patches by their one-dimensional index, ``axial`` by row and column.
        qk_norm: Normalise queries and keys per head (Dehghani et al., 2023).
        generative_pooler: Where the captioner looks. ``cascade``: the contrastive pooler reads the generative one;
            ``parallel``: both read the encoder; ``none``: the captioner reads the encoder itself.
        contrastive_loss: ``infonce``, or ``sigmoid`` (SigLIP: Zhai et al., 2023), which learns a bias as well.
            Evaluation reports InfoNCE for both, since the two are not comparable.
        position_std: Standard deviation that learned positions start with. 0.02 is ViT's, next to nothing beside
            patches of size 1: runs of a thousand steps do far better with 0.5.
        vocab_size: Wanted size of a trained tokenizer; a checkpoint holds the real one.
        context_length: Most text tokens a caption may have, begin and end token included.
        patch_dropout: Share of patches left out in training (Li et al., 2023), 0 to below 1.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
    """

    variant: Literal["grr-coca", "baseline-coca", "coca"] = "grr-coca"
    size: Literal["tiny", "small", "base", "base-12", "large"] = "base"
    image_size: int = Field(ge=8)
    patch_size: int = Field(ge=1)
    image_width: int = Field(ge=8)
    image_layers: int = Field(ge=1)
    image_heads: int = Field(ge=1)
    image_norm: NormKind
    image_mlp: MLPKind
    image_positions: PositionKind | Literal["both"]
    text_width: int = Field(ge=8)
    unimodal_layers: int = Field(ge=1)
    multimodal_layers: int = Field(ge=1)
    text_heads: int = Field(ge=1)
    text_norm: NormKind
    text_mlp: MLPKind
    text_positions: PositionKind
    embed_dim: int = Field(ge=1)
    pooler_queries: int = Field(ge=1)
    generative_pooler: Literal["cascade", "parallel", "none"] = "cascade"
    contrastive_loss: Literal["infonce", "sigmoid"] = "infonce"
    geglu: Literal["matched", "wide"] = "matched"
    rope: Literal["raster", "axial"] = "raster"
    qk_norm: bool = False
    attention_bias: bool = True
    tied_embeddings: bool = False
    position_std: float = Field(default=0.02, gt=0)
    vocab_size: int = Field(default=32_000, ge=259)
    context_length: int = Field(default=77, ge=4)
    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    gradient_checkpointing: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        size = SIZES.get(given.get("size", "base"), {})
        variant = VARIANTS.get(given.get("variant", "grr-coca"), {})
        return {**size, **variant, **given}

    @property
    def size_name(self) -> str:
        """The size, for people; said to be custom where a dimension is not the size's."""
        same = all(getattr(self, name) == value for name, value in SIZES[self.size].items())
        return self.size if same else f"custom (from {self.size})"

    @property
    def variant_name(self) -> str:
        """The variant, for people; said to be custom where a part is not the variant's."""
        same = all(getattr(self, name) == value for name, value in VARIANTS[self.variant].items())
        return self.variant if same else f"custom (from {self.variant})"

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        for width, heads, where in (
            (self.image_width, self.image_heads, "image"),
            (self.text_width, self.text_heads, "text"),
        ):
            if width % heads or (width // heads) % 4:
                raise ValueError(
                    f"{where}_width / {where}_heads must be a multiple of 4, for RoPE; got {width}/{heads}"
                )
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        return self


class DataConfig(Section):
    """Which pictures and captions, and how they become tensors.

    Attributes:
        dataset: How ``path`` is read: img2dataset ``shards``, a ``folder`` with a caption file, ``roco``, ``coco``,
            ``flickr30k``, or ``phantoms`` (drawn into the run folder where ``path`` is empty).
        path: A folder, a shard, a glob, a brace pattern, one of these as an address (s3://...), or an index of shards.
        split: The training split's name, where the set has splits.
        validation_split: Its validation split; where it has none, ``validation_fraction`` is cut off by hash.
        group_column: Field whose equal values stay on one side of that cut (patient, study, article).
        roco_kind: Pictures of ROCO that are used: ``radiology``, ``non-radiology`` or ``both``.
        phantoms: Count of synthetic studies to draw.
        tokenizer: A ``tokenizer.json`` to use; where empty, one is trained on the training captions.
        fit: ``letterbox`` keeps the aspect between black bars, ``squash`` does not.
        mean, std: Normalisation of pixels in [0, 1].
        window: Intensity contract for DICOM: ``auto`` (the file's first window, else percentiles), a CT preset's
            name or ``CENTRE/WIDTH``.
        augment: ``none``, ``picture`` (crops) or ``radiology`` (small turns, shifts, window, gamma and noise).
        flip, quarter_turns: With ``augment = "picture"``, mirror or turn pictures at random; refused on radiology.
        workers: Reading processes beside the training process.
        in_memory: Keep every fitted picture in memory after its first reading; for small sets, without workers.
        cache: A folder for decoded pictures at the model's size, shared by runs; for pictures that are slow to decode.
        cache_gb: Most gigabytes it may hold; 24 hold 80,000 grey pictures of 384 px.
        shard_window: Remote shards whose samples are mixed with each other; one more than these lie on the disk.
        shard_cache: A folder for fetched remote shards that the processes of a machine share; where empty, each has a
            temporary one.
        max_bad_fraction: Stop with exit code 4 above this share of unreadable samples, once 1,000 were seen.
    """

    dataset: DatasetKind = "folder"
    path: str = ""
    split: str = "train"
    validation_split: str = "valid"
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    group_column: str | None = None
    roco_kind: Literal["radiology", "non-radiology", "both"] = "radiology"
    phantoms: int = Field(default=6000, ge=1)
    tokenizer: str = ""
    fit: Literal["letterbox", "squash"] = "letterbox"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    window: str = "auto"
    augment: Literal["none", "picture", "radiology"] = "none"
    flip: bool = False
    quarter_turns: bool = False
    workers: int = Field(default=0, ge=0)
    in_memory: bool = False
    cache: str = ""
    cache_gb: float = Field(default=50.0, gt=0)
    shard_window: int = Field(default=8, ge=1)
    shard_cache: str = ""
    max_bad_fraction: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _captions_stay_true(self) -> Self:
        if not (self.flip or self.quarter_turns):
            return self
        asked = "flip" if self.flip else "quarter_turns"
        if self.dataset in ("roco", "phantoms") or self.augment == "radiology":
            raise ValueError(
                f"data.{asked} is refused on radiology data: it makes captions false (31 % of ROCO's say left or right)"
            )
        if self.augment != "picture":
            raise ValueError(f'data.{asked} needs data.augment = "picture"')
        return self


class TrainingConfig(Section):
    """The loop, the optimiser and the schedule.

    Attributes:
        steps: Optimiser steps.
        batch_size: Samples a step over all devices and all accumulated micro-batches.
        accumulation: Micro-batches a step; each is shared out over the devices.
        contrastive_batch: Which pairs compete. ``global``: all of ``batch_size``, whatever the accumulation, by
            encoding every micro-batch twice (GradCache: Gao et al., 2021); ``micro``: those of one micro-batch.
        learning_rate: Peak, reached after ``warmup_steps``; then a cosine down to ``final_learning_rate``.
        optimizer: ``adamw``, or ``muon`` for hidden matrices with AdamW for the rest.
        clip: Largest gradient norm; 0 switches clipping off.
        precision: ``auto`` is bf16 autocast on a GPU and float32 elsewhere.
        save_every, eval_every: Steps between checkpoints and between evaluations; 0 means at the end only.
        keep: Newest checkpoints kept.
        keep_best: Keep the checkpoint of the best evaluation as well, in ``best``, by ``monitor``.
        patience: Stop after this many evaluations in a row without a better ``monitor``; 0 never stops early.
        monitor: The validation loss that ``keep_best`` and ``patience`` go by.
        ema: Decay of a moving average of the weights, which evaluation and captions then use; 0 is off.
        compile: Compile each layer (torch.compile), which takes minutes at the start. For GPUs: on two CPU cores a step
            was 1 % faster.
        loggers: ``tensorboard`` and ``wandb``, beside ``metrics.jsonl``; their packages are extras.
        start: Hash of the weights that fine-tuning began with; filled in, so that a run goes on from no others.
        caption_weight, contrastive_weight: CoCa's loss weights; 0 switches a loss off.
    """

    steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=64, ge=2)
    accumulation: int = Field(default=1, ge=1)
    contrastive_batch: Literal["global", "micro"] = "global"
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=5e-4, gt=0)
    final_learning_rate: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-8, gt=0)
    clip: float = Field(default=1.0, ge=0)
    precision: Literal["auto", "float32", "bf16"] = "auto"
    caption_weight: float = Field(default=2.0, ge=0)
    contrastive_weight: float = Field(default=1.0, ge=0)
    save_every: int = Field(default=0, ge=0)
    eval_every: int = Field(default=0, ge=0)
    keep: int = Field(default=2, ge=1)
    keep_best: bool = False
    patience: int = Field(default=0, ge=0)
    monitor: Literal["contrastive_loss", "caption_loss", "coca_loss"] = "coca_loss"
    ema: float = Field(default=0.0, ge=0, lt=1)
    compile: bool = False
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    start: str = ""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size % self.accumulation or self.batch_size // self.accumulation < 2:
            raise ValueError(
                f"batch_size {self.batch_size} must split into accumulation = {self.accumulation} parts of 2 or more"
            )
        if self.caption_weight == 0 and self.contrastive_weight == 0:
            raise ValueError("caption_weight and contrastive_weight are both 0: nothing to learn")
        if (self.patience or self.keep_best) and not self.eval_every:
            raise ValueError("patience and keep_best need evaluations on the way: set eval_every")
        return self


class FinetuneConfig(Section):
    """What of a model that was trained before stays, or comes in.

    Attributes:
        freeze: ``image`` leaves the image encoder as it is.
        image_weights: A ``.safetensors`` file of a timm or torchvision ViT for the image encoder to start from.
        image_hash: Of that file; filled in, so that a run goes on from no other.
    """

    freeze: Literal["none", "image"] = "none"
    image_weights: str = ""
    image_hash: str = ""


class DistributedConfig(Section):
    """How several processes under torchrun share the work.

    Attributes:
        strategy: ``ddp`` keeps the whole model in each process; ``fsdp2`` keeps a share of every layer.
        timeout: Seconds that one process waits for another before the run ends with the reason.
    """

    strategy: Literal["ddp", "fsdp2"] = "ddp"
    timeout: float = Field(default=1800.0, gt=0)


class EvalConfig(Section):
    """How losses are measured and captions are scored.

    Attributes:
        batch_size: Pairs that compete in the contrastive loss (chance is its natural logarithm).
        limit: Most validation samples an evaluation inside the loop reads; 0 means all.
        tokenizer: Of the caption scores: ``coco`` (pycocoevalcap's), ``coco-nobrackets``, ``imageclef`` or
            ``whitespace``.
        group_by: Field of the samples, or column of the references, that gives the report its groups; ``modality``
            where there is no such field is read out of the references.
        cluster_by: Field or column whose equal values are resampled together (patient, study, article).
        resamples: Of the bootstrap; 0 gives no intervals.
        save_idf: A file to keep the references' document frequencies in, for ``--idf``.
        meteor: Compute METEOR as well; needs Java.
        verify_java: Recompute with the Java tokenizer and show the captions whose tokens differ.
        seed: Of resampling and of the random-caption floor.
    """

    batch_size: int = Field(default=64, ge=2)
    limit: int = Field(default=2048, ge=0)
    tokenizer: Literal["coco", "coco-nobrackets", "imageclef", "whitespace"] = "coco"
    group_by: str = ""
    cluster_by: str = ""
    resamples: int = Field(default=1000, ge=0, le=100_000)
    save_idf: str = ""
    meteor: bool = False
    verify_java: bool = False
    seed: int = Field(default=0, ge=0)


class GenerationConfig(Section):
    """How captions are decoded.

    Attributes:
        beams: 1 decodes greedily, or samples where ``temperature`` is above 0.
        temperature: 0 is greedy; otherwise logits are divided by it before sampling.
        top_k, top_p: Sample among the k likeliest tokens, or the smallest set with probability p; 0 and 1 are off.
        captions: Captions an image; more than one needs sampling or as many beams.
        length_penalty: Beam scores are the summed log-probability over length to this power.
        no_repeat_ngram: Refuse tokens that would repeat an n-gram of this size; 0 is off.
        min_tokens, max_tokens: Bounds on generated tokens, the end token included.
        weights: What decoding reads: ``float32``, ``float16`` (half the bytes; an x86 CPU only; arithmetic stays
            float32), or ``auto``, float16 where it can be. On a GPU autocast decides instead.
        seed: Of the sampling.
    """

    beams: int = Field(default=1, ge=1, le=64)
    temperature: float = Field(default=0.0, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    captions: int = Field(default=1, ge=1)
    length_penalty: float = Field(default=1.0, ge=0)
    no_repeat_ngram: int = Field(default=0, ge=0)
    min_tokens: int = Field(default=1, ge=1)
    max_tokens: int = Field(default=76, ge=1)
    weights: Literal["auto", "float32", "float16"] = "auto"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beams and temperature exclude each other: set generation.beams = 1 or temperature = 0")
        if self.captions > max(self.beams, 1) and self.temperature == 0:
            raise ValueError("several captions an image need generation.temperature above 0, or as many beams")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self


class Recipe(Section):
    """One run."""

    model: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate({}))
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    distributed: DistributedConfig = DistributedConfig()
    eval: EvalConfig = EvalConfig()
    generation: GenerationConfig = GenerationConfig()


def recipe_folder() -> Path:
    """Where the packaged recipes lie: inside an installed wheel, or beside the package in a source tree."""
    packaged = Path(__file__).parent / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Names that ``--recipe`` knows."""
    return sorted(path.stem for path in recipe_folder().glob("*.toml"))


def read_recipe(name_or_file: str) -> dict[str, Any]:
    """The tables of a packaged recipe, or of a TOML file.

    Raises:
        UsageError: There is no such recipe, or the file is not TOML.
    """
    packaged = recipe_folder() / f"{name_or_file}.toml"
    path = packaged if name_or_file in recipe_names() else Path(name_or_file)
    try:
        return parse_toml(path.read_text(encoding="utf-8"), f"recipe {path}")
    except (OSError, UnicodeDecodeError) as error:
        hint = _nearest(name_or_file, recipe_names())
        raise UsageError(
            f"no recipe {name_or_file!r}: it is neither a readable file nor one of {', '.join(recipe_names())}{hint}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe {path} is not TOML: {error}") from error


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The tables of TOML text; ``source`` names it in errors.

    Raises:
        TOMLDecodeError: It is not TOML.
        UsageError: Its arrays or tables are nested too deeply to read.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise UsageError(f"{source} is nested too deeply: no setting takes such a value") from error


def apply_settings(tables: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """``tables`` with each ``section.key=value`` of ``settings`` put in; a value that is not TOML is a string.

    Raises:
        UsageError: A setting is not of that form.
    """
    merged = {section: dict(values) if isinstance(values, Mapping) else values for section, values in tables.items()}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            raise UsageError(f"--set {setting!r}: expected section.key=value, as in training.steps=500")
        try:
            value = parse_toml(f"value = {text}", f"--set {name.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        table = merged.setdefault(section, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {setting!r}: {section} is not a table")
        table[key] = value
    return merged


def build_recipe(tables: Mapping[str, Any], source: str) -> Recipe:
    """The validated recipe; ``source`` names it in errors.

    Raises:
        UsageError: A name is unknown (with the nearest right one) or a value does not fit.
    """
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        raise UsageError(f"{source}: " + "; ".join(_explain(item) for item in error.errors())) from error


def _explain(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{path}: {item['msg'].removeprefix('Value error, ')}"
    *parents, name = item["loc"]
    section = Recipe.model_fields.get(str(parents[0])) if parents else None
    fields = section.annotation.model_fields if section and section.annotation else Recipe.model_fields
    return f"{path} is not a setting{_nearest(str(name), fields)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
