import json
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from math import exp, sqrt
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge, my_lcs
from sacrebleu.metrics import CHRF

from grrcoca_cli.evaluation.bleu import bleu, smoothed_bleu4
from grrcoca_cli.evaluation.chrf import chrf
from grrcoca_cli.evaluation.cider import cider_d
from grrcoca_cli.evaluation.measures import Measure
from grrcoca_cli.evaluation.ngrams import pair_ngrams
from grrcoca_cli.evaluation.rouge import common_subsequences, imageclef_rouge1, rouge_l

Caption = list[str]
Corpus = list[tuple[Caption, list[Caption]]]
NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")

WORDS = st.sampled_from(["a", "b", "c", "left", "lung", "ödem", "x-ray", "肺", "-lrb-"])
REFERENCES = st.lists(st.lists(WORDS, min_size=1, max_size=9), min_size=1, max_size=4)
CORPORA = st.lists(st.tuples(st.lists(WORDS, max_size=9), REFERENCES), min_size=1, max_size=6)
TEXTS = st.text(alphabet="ab é\u2028.", max_size=12)


def split(*captions: str) -> list[Caption]:
    return [caption.split() for caption in captions]


def per_image(measure: Measure) -> list[float]:
    return measure.finish(measure.parts).tolist()


def coco_measures(corpus: Corpus) -> list[Measure]:
    candidates, references = [caption for caption, _ in corpus], [several for _, several in corpus]
    pairs = pair_ngrams(candidates, references)
    return [*bleu(pairs), rouge_l(candidates, references), *filter(None, [cider_d(pairs)])]


def pycocoevalcaps(corpus: Corpus) -> list[tuple[float, Sequence[float]]]:
    """Corpus and per-image scores in the order of `NAMES`."""
    references = {image: [" ".join(each) for each in several] for image, (_, several) in enumerate(corpus)}
    candidates = {image: [" ".join(caption)] for image, (caption, _) in enumerate(corpus)}
    blues = Bleu(4).compute_score(references, candidates, verbose=0)
    return [
        *zip(*blues, strict=True),
        Rouge().compute_score(references, candidates),
        Cider().compute_score(references, candidates),
    ]


def test_bleu_by_hand() -> None:
    measures = bleu(pair_ngrams(split("a b c d e"), [split("a b c d f", "x y")]))
    expected = [0.8, sqrt(0.8 * 0.75), (0.8 * 0.75 * 2 / 3) ** (1 / 3), (0.8 * 0.75 * 2 / 3 * 0.5) ** (1 / 4)]
    assert [measure.value for measure in measures] == pytest.approx(expected, abs=1e-8)
    assert [per_image(measure)[0] for measure in measures] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("candidate", "references", "bleu1"),
    [
        ("the the the the", ["the cat"], 1 / 4),
        ("the the the the", ["the cat", "the the", "a"], 2 / 4),  # the reference that has it most, not their sum
        ("a b", ["a b c d"], exp(1 - 4 / 2)),
        ("a b", ["a b c d", "x y"], 1),  # the closest length counts
        ("a b c", ["a b c d", "x y"], 1),  # of two that are equally close, the shorter
    ],
)
def test_bleu_clips_counts_and_punishes_brevity(candidate: str, references: list[str], bleu1: float) -> None:
    assert bleu(pair_ngrams(split(candidate), [split(*references)]))[0].value == pytest.approx(bleu1)


def test_bleu_sums_before_it_divides() -> None:
    measure = bleu(pair_ngrams(split("a b c d", "x"), [split("a b c d"), split("y")]))[0]
    assert measure.value == pytest.approx(4 / 5)
    assert per_image(measure) == pytest.approx([1, 0], abs=1e-8)


def test_rouge_l_by_hand() -> None:
    precision, recall = 2 / 3, 2 / 4
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert per_image(rouge_l(split("a b c", ""), [split("a c d e"), split("a")])) == pytest.approx([expected, 0])


def test_cider_d_by_hand() -> None:
    measure = cider_d(pair_ngrams(split("a b", "e f g h"), [split("a b c d"), split("e f g h")]))
    assert measure is not None
    cosines = [1 / sqrt(2), 1 / sqrt(3), 0, 0]
    assert per_image(measure) == pytest.approx([10 * sum(cosines) / 4 * exp(-((1 - 3) ** 2) / (2 * 6**2)), 10])


@pytest.mark.parametrize("references", [[["a b"]], [["a b", "c"], ["c", "a b"]]])
def test_cider_d_is_not_defined_where_no_word_tells_images_apart(references: list[list[str]]) -> None:
    tokenized = [split(*several) for several in references]
    assert cider_d(pair_ngrams(split(*["a b"] * len(tokenized)), tokenized)) is None
    assert cider_d(pair_ngrams(split(*["a b"] * (len(tokenized) + 1)), [*tokenized, split("b a")])) is not None


def test_imageclef_rouge1_by_hand() -> None:
    measure = imageclef_rouge1(
        split("a a b", "", "", "q"), [split("a b c d", "b b"), split("a"), split(""), split("", "q")]
    )
    assert per_image(measure) == pytest.approx([2 * 2 / (3 + 4), 0, 0, 1])
    assert measure.value == pytest.approx((4 / 7 + 1) / 4)


def test_smoothed_bleu4_ranks_what_bleu4_does_not() -> None:
    references = [split("a b c d e")] * 4
    perfect, close, far, empty = smoothed_bleu4(split("a b c d e", "a b c x y", "x b y d z", ""), references)
    assert perfect == pytest.approx(1)
    assert close == pytest.approx((3 / 5 * 2 / 4 * 1 / 3 * 0.1 / 2) ** (1 / 4))
    assert perfect > close > far > empty == 0


@settings(max_examples=150, deadline=None)
@given(CORPORA)
def test_the_scores_are_pycocoevalcaps(corpus: Corpus) -> None:
    measures = coco_measures(corpus)
    for measure, (value, single) in zip(measures, pycocoevalcaps(corpus), strict=len(measures) == len(NAMES)):
        assert measure.value == pytest.approx(value, rel=0, abs=1e-12)
        assert per_image(measure) == pytest.approx(list(single), rel=0, abs=1e-12)
    assert len(measures) == len(NAMES) or pycocoevalcaps(corpus)[-1][0] == 0


@pytest.mark.parametrize("name", ["edge_cases", "nlgeval", "abstract200_5refs", "roco400_singleref"])
def test_pycocoevalcaps_own_numbers(shared_data: Path, name: str) -> None:
    golden = json.loads((shared_data / f"caption-eval/golden/{name}.json").read_text(encoding="utf-8"))
    ids = list(golden["tokenized_references"])
    candidates = split(*(golden["tokenized_candidates"][image][0] for image in ids))
    references = [split(*golden["tokenized_references"][image]) for image in ids]
    measures = coco_measures([*zip(candidates, references, strict=True)])
    for measure, expected in zip(measures, NAMES, strict=True):
        assert measure.value == pytest.approx(golden["scores"][expected], rel=0, abs=1e-12)
        single = [golden["per_image"][image][expected] for image in ids]
        assert per_image(measure) == pytest.approx(single, rel=0, abs=1e-12)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=90), REFERENCES)
def test_common_subsequences_are_those_of_the_whole_table(candidate: Caption, references: list[Caption]) -> None:
    expected = [my_lcs(reference, candidate) for reference in references]
    assert common_subsequences(candidate, references) == expected
    assert [common_subsequences(reference, [candidate])[0] for reference in references] == expected


@pytest.mark.timeout(60)  # pycocoevalcap takes nine seconds for one of these
def test_captions_of_five_thousand_words() -> None:
    random = Random(0)
    words = [str(random.randrange(1000)) for _ in range(5000)]
    cut = [word for word in words if random.random() < 0.5]
    (value,) = per_image(rouge_l([cut], [[words] * 20]))
    recall = len(cut) / len(words)  # all of the one is in the other, in order
    assert value == pytest.approx((1 + 1.2**2) * recall / (recall + 1.2**2))
    measures = coco_measures([(cut, [words] * 20), (["a"], [["b"]])])
    assert [measure.name for measure in measures] == ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d"]


@settings(deadline=None)
@given(CORPORA)
def test_imageclef_rouge1_counts_words_in_common(corpus: Corpus) -> None:
    def overlap(one: Caption, other: Caption) -> float:
        return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))

    expected = [max(overlap(caption, each) for each in several) for caption, several in corpus]
    measure = imageclef_rouge1([caption for caption, _ in corpus], [several for _, several in corpus])
    assert per_image(measure) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_chrf_is_sacrebleus(corpus: list[tuple[str, list[str]]]) -> None:
    measure = chrf([caption for caption, _ in corpus], [several for _, several in corpus])
    most = max(len(several) for _, several in corpus)
    streams = [[several[place] if place < len(several) else None for _, several in corpus] for place in range(most)]
    expected = CHRF().corpus_score([caption for caption, _ in corpus], streams).score
    assert measure.value == pytest.approx(expected, abs=1e-10)
    single = [CHRF().sentence_score(caption, several).score for caption, several in corpus]
    assert per_image(measure) == pytest.approx(single, abs=1e-10)


def test_chrf_of_more_images_than_fit_at_once() -> None:
    captions = [f"nodule {number}" for number in range(600)]
    references = [[f"nodule {number}", "mass"][: 1 + number % 2] for number in range(600)]
    assert per_image(chrf(captions, references)) == pytest.approx([100] * 600)


def test_parts_of_a_resample_are_scored_as_the_images_would_be() -> None:
    random = Random(1)
    words = ["left", "right", "lung", "liver", "a", "the", "shows", "mass"]
    corpus = [([random.choice(words) for _ in range(6)], [[random.choice(words) for _ in range(7)]]) for _ in range(30)]
    drawn = [random.randrange(30) for _ in range(30)]
    again = [corpus[image] for image in drawn]
    for measure, expected in zip(coco_measures(corpus)[:5], coco_measures(again)[:5], strict=True):
        assert measure.finish(measure.parts[drawn].sum(axis=0)) == pytest.approx(expected.value, abs=1e-12)
        weights = np.stack([np.bincount(drawn, minlength=30)] * 2)
        assert measure.finish(weights @ measure.parts) == pytest.approx([expected.value] * 2, abs=1e-12)


@pytest.mark.parametrize("long_caption", [False, True])
def test_memory_grows_as_the_captions_do(long_caption: bool) -> None:
    def peak(size: int) -> int:
        random = Random(0)
        words = [str(random.randrange(500)) for _ in range(size)]
        references = [words[start : start + 8] for start in range(0, size, 8)]
        candidates, several = ([words], [references]) if long_caption else (references, [[each] for each in references])
        tracemalloc.start()
        try:
            pairs = pair_ngrams(candidates, several)
            _ = bleu(pairs), cider_d(pairs)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(800)
    assert peak(32_000) < 2.6 * peak(16_000)
