"""BLEU, ROUGE-L and CIDEr-D over tokens, by pycocoevalcap's scorers.

In every function ``candidates[i]`` is the caption of image ``i`` and ``references[i]`` its references, at least one and
none of them empty. Scores of single images come in the same order.
"""

from collections.abc import Sequence
from itertools import pairwise

Tokens = Sequence[str]
MAX_ORDER = 4
"""The longest n-gram that BLEU and CIDEr-D count."""


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[list[float], list[list[float]]]:
    """BLEU-1 to BLEU-4 in [0, 1], closest reference length, not smoothed (Papineni et al., 2002).

    Returns:
        The four scores of the corpus (clipped counts and lengths summed over images first), and for each order the
        scores of the single images.
    """
    from pycocoevalcap.bleu.bleu import Bleu

    corpus, per_image = Bleu(MAX_ORDER).compute_score(*_numbered(candidates, references), verbose=0)
    return [float(score) for score in corpus], [[float(score) for score in scores] for scores in per_image]


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """ROUGE-L in [0, 1] of each image: F with beta 1.2 of the best precision and the best recall (Lin, 2004)."""
    from pycocoevalcap.rouge.rouge import Rouge

    return [float(score) for score in Rouge().compute_score(*_numbered(candidates, references))[1]]


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """CIDEr-D in [0, 10] of each image: sigma 6, document frequencies out of ``references`` (Vedantam et al., 2015)."""
    from pycocoevalcap.cider.cider import Cider

    return [float(score) for score in Cider(MAX_ORDER, sigma=6.0).compute_score(*_numbered(candidates, references))[1]]


def all_alike(references: Sequence[Sequence[Tokens]]) -> bool:
    """Whether the references of every image hold the same n-grams, so that no n-gram tells one image from another.

    Every inverse document frequency is then zero, and CIDEr-D undefined. One image is always alike.
    """
    return all(_ngrams(one) == _ngrams(other) for one, other in pairwise(references))


def _ngrams(references: Sequence[Tokens]) -> set[tuple[str, ...]]:
    return {
        tuple(tokens[start : start + order])
        for tokens in references
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(tokens) - order + 1)
    }


def _numbered(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References, then candidates, in the form that pycocoevalcap takes."""
    return (
        {image: [" ".join(tokens) for tokens in tokenized] for image, tokenized in enumerate(references)},
        {image: [" ".join(tokens)] for image, tokens in enumerate(candidates)},
    )
