"""Caption generation: greedy, sampled or by beam search, with cached keys and values."""

import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from grrcoca_cli.config import GenerationConfig
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.precision import at_least_float32
from grrcoca_cli.model.text import TextDecoder


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens."""

    pad: int
    bos: int
    eos: int


@dataclass(frozen=True)
class GeneratedCaption:
    """One decoded caption.

    Attributes:
        tokens: Ids without the begin token; the last is the end token, unless the caption reached its longest length.
        logprobs: Log-probability of each token under the model, in nats, before temperature and filters.
        score: Ranks the captions of one image: the summed log-probability over length to the length penalty.
    """

    tokens: list[int]
    logprobs: list[float]
    score: float


class _Decoder(Protocol):
    """Next-token logits for rows that grow by one token per step."""

    def step(self, tokens: Tensor) -> Tensor: ...
    def select(self, rows: Tensor, images: Tensor) -> None: ...


class _CachedDecoder:
    """Runs only the newest token and keeps the keys and values of the others and of the image."""

    def __init__(self, text: TextDecoder, memory: Tensor) -> None:
        self.text = text
        self.caches = self.text.new_caches()
        self.image = self.text.image_keys_values(memory)

    def step(self, tokens: Tensor) -> Tensor:
        """Newest tokens (R, L) to logits (R, V)."""
        return self.text.step(tokens, self.caches, self.image)

    def select(self, rows: Tensor, images: Tensor) -> None:
        """Keep these rows and images, in this order."""
        for cache in self.caches:
            cache.select(rows)
        if len(images) != len(self.image[0][0]):
            self.image = [(keys[images], values[images]) for keys, values in self.image]


class _PrefixDecoder:
    """Runs the whole prefix at every step: the slow reference for tests and measurements of the cache."""

    def __init__(self, text: TextDecoder, memory: Tensor) -> None:
        self.text = text
        self.memory = memory
        self.prefix: Tensor | None = None

    def step(self, tokens: Tensor) -> Tensor:
        """Newest tokens (R, L) to logits (R, V)."""
        self.prefix = tokens if self.prefix is None else torch.cat([self.prefix, tokens], dim=1)
        lengths = torch.full((len(self.prefix),), self.prefix.shape[1], device=tokens.device)
        hidden, _ = self.text.encode(self.prefix, lengths)
        return self.text.head(self.text.decode(hidden, self.memory)[:, -1])  # type: ignore[no-any-return]

    def select(self, rows: Tensor, images: Tensor) -> None:
        """Keep these rows and images, in this order."""
        assert self.prefix is not None
        self.prefix, self.memory = self.prefix[rows], self.memory[images]


@torch.inference_mode()
def generate(
    model: CoCa,
    memory: Tensor,
    special: SpecialTokens,
    settings: GenerationConfig,
    generator: torch.Generator | None = None,
    *,
    text: TextDecoder | None = None,
    use_cache: bool = True,
) -> list[list[GeneratedCaption]]:
    """Captions of each image, best first.

    Args:
        model: In evaluation mode.
        memory: The captioner's image tokens (B, Q, Dm), from `CoCa.encode_image`.
        special: Begin, end and padding ids.
        settings: Decoding; ``max_tokens`` is limited by the context length.
        generator: For sampling, on the device of ``memory``.
        text: Replaces the model's own text decoder, for example with the result of `pack_for_decoding`.
        use_cache: False recomputes every prefix; the result is the same.
    """
    text = text or model.text_decoder
    decoder: _Decoder = _CachedDecoder(text, memory) if use_cache else _PrefixDecoder(text, memory)
    longest = min(settings.max_tokens, model.config.context_length - 1)
    rows = _Rows(len(memory), max(settings.beams, settings.captions), special.bos, memory.device)
    if settings.beams > 1:
        return _beam_search(decoder, rows, longest, special, settings)
    return _sample(decoder, rows, longest, special, settings, generator)


def _logprobs(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1, dtype=at_least_float32(logits.dtype))


def _constrain(logprobs: Tensor, so_far: Tensor, special: SpecialTokens, settings: GenerationConfig) -> None:
    """Set forbidden tokens of ``logprobs`` (R, V) to minus infinity; ``so_far`` (R, t) are the tokens so far."""
    logprobs[:, special.pad] = -torch.inf
    logprobs[:, special.bos] = -torch.inf
    if so_far.shape[1] + 1 < settings.min_tokens:
        logprobs[:, special.eos] = -torch.inf
    n = settings.no_repeat_ngram
    if n and so_far.shape[1] >= n:
        ngrams = so_far.unfold(1, n, 1)  # (R, t - n + 1, n)
        last = so_far[:, so_far.shape[1] - n + 1 :].unsqueeze(1)  # (R, 1, n - 1)
        repeats = (ngrams[..., :-1] == last).all(dim=-1)  # (R, t - n + 1)
        rows, places = repeats.nonzero(as_tuple=True)
        logprobs[rows, ngrams[rows, places, -1]] = -torch.inf


def _choose(allowed: Tensor, settings: GenerationConfig, generator: torch.Generator | None) -> Tensor:
    """One token per row (R,) from constrained log-probabilities (R, V)."""
    if settings.temperature == 0:
        return allowed.argmax(dim=-1)
    scaled = allowed / settings.temperature
    if settings.top_k:
        kth = scaled.topk(min(settings.top_k, scaled.shape[-1])).values[:, -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    if settings.top_p < 1:
        ordered, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True)
        outside = ordered.cumsum(dim=-1) - ordered >= settings.top_p  # the likeliest is never outside
        scaled = scaled.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -torch.inf)
    return torch.multinomial(scaled.softmax(dim=-1), 1, generator=generator).squeeze(1)


class _Rows:
    """The unfinished captions: K adjacent rows for each image that is still decoded.

    Attributes:
        images: The image that each group of K rows describes (I,).
        tokens: Ids so far, without the begin token (R, t).
        logprobs: Their log-probabilities (R, t).
        newest: The tokens that the decoder has not seen yet (R, 1).
    """

    def __init__(self, images: int, width: int, bos_id: int, device: torch.device) -> None:
        self.width = width
        self.images = torch.arange(images, device=device)
        self.newest = torch.full((images * width, 1), bos_id, device=device)
        self.tokens = self.newest[:, :0]
        self.logprobs = torch.empty(images * width, 0, device=device)

    def append(self, chosen: Tensor, logprobs: Tensor) -> None:
        """Append to every row its token in ``chosen`` (R,), with its log-probability in ``logprobs`` (R,)."""
        self.newest = chosen.unsqueeze(1)
        self.tokens = torch.cat([self.tokens, self.newest], dim=1)
        self.logprobs = torch.cat([self.logprobs, logprobs.unsqueeze(1)], dim=1)

    def select(self, rows: Tensor, groups: Tensor) -> None:
        """Keep these rows and the images of these groups, in this order."""
        self.images = self.images[groups]
        self.newest, self.tokens, self.logprobs = self.newest[rows], self.tokens[rows], self.logprobs[rows]

    def caption(self, row: int, settings: GenerationConfig, special: SpecialTokens) -> GeneratedCaption:
        """One row as a caption; padding after its end token is dropped."""
        ids = [token for token in self.tokens[row].tolist() if token != special.pad]
        logprobs = self.logprobs[row, : len(ids)].tolist()
        return GeneratedCaption(ids, logprobs, sum(logprobs) / len(ids) ** settings.length_penalty)


def _sample(
    decoder: _Decoder,
    rows: _Rows,
    longest: int,
    special: SpecialTokens,
    settings: GenerationConfig,
    generator: torch.Generator | None,
) -> list[list[GeneratedCaption]]:
    """Greedy decoding or sampling; an image leaves the batch once all of its captions have ended."""
    K = rows.width
    results: list[list[GeneratedCaption]] = [[] for _ in rows.images]
    has_ended = torch.zeros_like(rows.newest[:, 0], dtype=torch.bool)
    for position in range(longest):
        scores = _logprobs(decoder.step(rows.newest))  # (R, V)
        _constrain(scores, rows.tokens, special, settings)
        chosen = _choose(scores, settings, generator)
        rows.append(chosen.masked_fill(has_ended, special.pad), scores.gather(1, chosen.unsqueeze(1)).squeeze(1))
        has_ended = has_ended | (chosen == special.eos)
        done = has_ended.view(-1, K).all(dim=1)
        if position + 1 == longest:
            done = torch.ones_like(done)
        for group in done.nonzero().flatten().tolist():
            captions = [rows.caption(group * K + row, settings, special) for row in range(K)]
            results[int(rows.images[group])] = sorted(captions, key=lambda caption: -caption.score)
        groups = (~done).nonzero().flatten()
        if len(groups) == 0:
            break
        if len(groups) < len(done):
            kept = (groups.unsqueeze(1) * K + torch.arange(K, device=groups.device)).flatten()
            has_ended = has_ended[kept]
            rows.select(kept, groups)
            decoder.select(kept, groups)
    return results


def _beam_search(
    decoder: _Decoder, rows: _Rows, longest: int, special: SpecialTokens, settings: GenerationConfig
) -> list[list[GeneratedCaption]]:
    """Beam search; an image is done once it has as many ended captions as beams."""
    K = rows.width
    device = rows.images.device
    results: list[list[GeneratedCaption]] = [[] for _ in rows.images]
    # All beams of an image start equal: only the first may branch at the first step.
    totals = torch.full((len(results), K), -torch.inf, device=device)
    totals[:, 0] = 0
    for position in range(longest):
        scores = _logprobs(decoder.step(rows.newest))  # (R, V)
        V = scores.shape[1]
        _constrain(scores, rows.tokens, special, settings)
        # Of 2 K candidates at most K end their caption, so that K beams always live on.
        best, places = (totals.unsqueeze(-1) + scores.view(-1, K, V)).flatten(1).topk(2 * K)  # each (I, 2 K)
        first_rows = torch.arange(len(best), device=device).unsqueeze(1) * K
        parents, chosen = (places // V + first_rows).flatten(), (places % V).flatten()  # each (2 K I,)
        candidates = copy.copy(rows)
        candidates.select(parents, torch.arange(len(best), device=device))
        candidates.append(chosen, scores[parents, chosen])

        ends = (chosen == special.eos).view_as(best) | (position + 1 == longest)
        possible = best > -torch.inf
        ranked_in = torch.arange(2 * K, device=device) < K
        for group, place in (ends & possible & ranked_in).nonzero().tolist():
            results[int(rows.images[group])].append(candidates.caption(group * 2 * K + place, settings, special))

        live = possible & ~ends
        undecided = torch.tensor([len(results[image]) < K for image in rows.images.tolist()], device=device)
        groups = (undecided & live.any(dim=1)).nonzero().flatten()
        if len(groups) == 0:
            break
        # The K best live candidates in their order; where fewer live, dead ones fill up with no chance to win.
        order = (~live[groups]).int().argsort(dim=1, stable=True)[:, :K]  # (I', K)
        totals = best[groups].masked_fill(~live[groups], -torch.inf).gather(1, order)
        kept = (groups.unsqueeze(1) * 2 * K + order).flatten()
        candidates.select(kept, groups)
        decoder.select(parents[kept], groups)
        rows = candidates
    return [sorted(found, key=lambda caption: -caption.score)[: settings.captions] for found in results]
