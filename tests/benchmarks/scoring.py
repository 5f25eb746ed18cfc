"""The default path of `grrcoca eval` against pycocoevalcap's, Java tokenizer and all, on 40,455 captions.

Both sides go from the same raw captions to tokens, BLEU-1..4, ROUGE-L and CIDEr-D, of the corpus and of each image, in
turns in one run. The captions are those of the official COCO example (1,000 captions, 5,005 references) over and over
under new ids, one word of each replaced by another word of the example, drawn with a fixed seed; without
../shared/data they are made by rule. Run alone: ``python tests/benchmarks/scoring.py``.
"""

import json
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random

from grrcoca_cli.evaluation import score
from grrcoca_cli.evaluation.bleu import bleu
from grrcoca_cli.evaluation.cider import cider_d
from grrcoca_cli.evaluation.ngrams import pair_ngrams
from grrcoca_cli.evaluation.rouge import rouge_l
from grrcoca_cli.evaluation.tokenize import coco_tokens

CAPTIONS = 40_455  # candidates and references together, up to the last image's
GOAL = 8.0
ROUNDS = 5
EXAMPLE = Path(__file__).resolve().parents[3] / "shared/data/caption-eval/coco_fakecap"
Row = dict[str, str | float]
Image = tuple[str, list[str]]  # a caption and its references


def example_images(folder: Path) -> list[Image]:
    """The official COCO example."""
    references: defaultdict[int, list[str]] = defaultdict(list)
    for each in json.loads((folder / "captions_val2014_1000.json").read_text(encoding="utf-8"))["annotations"]:
        references[each["image_id"]].append(each["caption"])
    results = json.loads((folder / "captions_val2014_fakecap_results.json").read_text(encoding="utf-8"))
    return [(each["caption"], references[each["image_id"]]) for each in results]


def made_images(random: Random) -> list[Image]:
    """A thousand images with captions of about ten words by rule."""

    def caption() -> str:
        size, shape = random.choice(["small", "large", "subtle"]), random.choice(["round", "oval", "spiculated"])
        thing, side = random.choice(["mass", "nodule", "cyst", "fracture"]), random.choice(["left", "right"])
        place = random.choice(["upper lobe", "lower lobe", "kidney", "femur"])
        plane = random.choice(["Axial CT", "Coronal MRI", "Chest X-ray"])
        return f"{plane} shows a {size}, {shape} {thing} in the {side} {place} (arrow)."

    return [(caption(), [caption() for _ in range(5)]) for _ in range(1000)]


def many_images() -> list[Image]:
    """Images with about `CAPTIONS` captions in all."""
    random = Random(0)
    base = example_images(EXAMPLE) if EXAMPLE.is_dir() else made_images(random)
    words = [word for caption, _ in base for word in caption.split() if word.isalpha()]

    def changed(caption: str) -> str:
        """One word replaced by another; those with punctuation stay, or sentences would end anywhere."""
        parts = caption.split(" ")
        parts[random.choice([place for place, word in enumerate(parts) if word.isalpha()])] = random.choice(words)
        return " ".join(parts)

    images: list[Image] = []
    captions = 0
    while captions < CAPTIONS:
        caption, references = base[len(images) % len(base)]
        images.append((changed(caption), [changed(reference) for reference in references]))
        captions += 1 + len(references)
    return images


def ours(images: list[Image]) -> tuple[float, float]:
    """Seconds for tokens, seconds for scores."""
    began = time.perf_counter()
    candidates = [coco_tokens(caption) for caption, _ in images]
    references = [[coco_tokens(caption) for caption in several] for _, several in images]
    tokenized = time.perf_counter()
    pairs = pair_ngrams(candidates, references)
    measures = [*bleu(pairs), rouge_l(candidates, references), cider_d(pairs)]
    for measure in measures:
        assert measure is not None
        _ = measure.value, measure.finish(measure.parts)
    return tokenized - began, time.perf_counter() - tokenized


def pycocoevalcaps(images: list[Image]) -> tuple[float, float]:
    """Seconds for tokens, seconds for scores."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    began = time.perf_counter()
    tokenizer = PTBTokenizer()
    candidates = tokenizer.tokenize({number: [{"caption": caption}] for number, (caption, _) in enumerate(images)})
    references = tokenizer.tokenize(
        {number: [{"caption": each} for each in several] for number, (_, several) in enumerate(images)}
    )
    tokenized = time.perf_counter()
    Bleu(4).compute_score(references, candidates, verbose=0)
    Rouge().compute_score(references, candidates)
    Cider().compute_score(references, candidates)
    return tokenized - began, time.perf_counter() - tokenized


def everything(images: list[Image]) -> float:
    """Seconds for `score`, which adds ImageCLEF ROUGE-1, chrF, notes and signature."""
    predictions = {str(number): caption for number, (caption, _) in enumerate(images)}
    references = {str(number): several for number, (_, several) in enumerate(images)}
    began = time.perf_counter()
    score(predictions, references)
    return time.perf_counter() - began


def rows() -> list[Row]:
    """Medians over `ROUNDS` in the form of the other benchmarks; none, with a line that says so, without Java."""
    if not shutil.which("java"):
        print("skipped, for want of Java: caption scores against pycocoevalcap")
        return []
    images = many_images()
    captions = len(images) + sum(len(references) for _, references in images)
    timed = [(ours(images), pycocoevalcaps(images), everything(images)) for _ in range(ROUNDS)]
    name = f"score {captions:,} captions of {len(images):,} images"

    def row(what: str, fast: Callable[..., float], slow: Callable[..., float], goal: float) -> Row:
        mine, peer = (statistics.median(seconds(*each) for each in timed) for seconds in (fast, slow))
        ratio = round(peer / mine, 3)
        return {"name": f"{name}: {what}", "ours": round(mine, 4), "peer": round(peer, 4), "ratio": ratio, "goal": goal}

    return [
        row(
            "whole default path against pycocoevalcap with Java", lambda a, _, __: sum(a), lambda _, b, __: sum(b), GOAL
        ),
        row("its tokenizer alone", lambda a, _, __: a[0], lambda _, b, __: b[0], 1.0),
        row("its BLEU, ROUGE-L and CIDEr-D alone", lambda a, _, __: a[1], lambda _, b, __: b[1], 1.0),
        row("with ImageCLEF ROUGE-1 and chrF besides", lambda _, __, c: c, lambda _, b, __: sum(b), 1.0),
    ]


def main() -> None:
    """Print the rows."""
    for each in rows():
        print(f"{each['ours']:>9}{each['peer']:>9}{each['ratio']:>8}{each['goal']:>6}  {each['name']}")


if __name__ == "__main__":
    main()
