"""What captions are like, whatever they say: their length, their variety, how much of them is copied."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

Tokens = Sequence[str]


def diversity(
    predictions: Mapping[str, Tokens],
    references: Mapping[str, Sequence[Tokens]],
    training: Collection[Tokens] | None = None,
) -> dict[str, float]:
    """Numbers in [0, 1] but for lengths and their ratio.

    Args:
        predictions: Tokens of the caption by image id, at least one image.
        references: Tokens of each reference by image id.
        training: Captions the model was trained on, to count copies.

    Returns:
        ``mean_length`` in tokens; ``length_ratio`` to the mean length of the references; ``empty``, the share without
        a token; ``distinct_captions`` over images; ``most_frequent``, the share of the commonest caption; ``distinct1``
        and ``distinct2``, distinct n-grams over n-grams (Li et al., 2016); ``repeated4``, the share of captions that
        hold a 4-gram twice; with ``training``, ``copied``, the share that is word for word one of it.
    """
    captions = [tuple(tokens) for tokens in predictions.values()]
    lengths = [len(tokens) for image in predictions for tokens in references[image]]
    mean_length = sum(map(len, captions)) / len(captions)
    mean_reference = sum(lengths) / max(len(lengths), 1)
    counts = Counter(captions)
    words = [word for caption in captions for word in caption]
    pairs = [pair for caption in captions for pair in pairwise(caption)]
    found = {
        "mean_length": mean_length,
        "length_ratio": mean_length / mean_reference if mean_reference else 0.0,
        "empty": counts[()] / len(captions),
        "distinct_captions": len(counts) / len(captions),
        "most_frequent": max(counts.values()) / len(captions),
        "distinct1": len(set(words)) / max(len(words), 1),
        "distinct2": len(set(pairs)) / max(len(pairs), 1),
        "repeated4": sum(map(_repeats, captions)) / len(captions),
    }
    if training is not None:
        known = {tuple(tokens) for tokens in training}
        found["copied"] = sum(caption in known for caption in captions) / len(captions)
    return found


def _repeats(caption: tuple[str, ...], n: int = 4) -> bool:
    grams = [caption[start : start + n] for start in range(len(caption) - n + 1)]
    return len(set(grams)) < len(grams)
