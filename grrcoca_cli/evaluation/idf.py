"""Document frequencies of n-grams in a file, so that CIDEr-D of different sets of images can weigh words alike."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation import tokenize
from grrcoca_cli.evaluation.ngrams import MAX_ORDER

SCHEMA = 1


@dataclass(frozen=True)
class Idf:
    """In the references of how many images each n-gram is.

    Attributes:
        images: Count of images that the frequencies come from.
        counts: Images by n-gram, its words joined by a space; an n-gram that is not there counts as in one image.
        tokenizer: Name of the tokenizer that made the words.
        source: For signatures.
    """

    images: int
    counts: Mapping[str, int]
    tokenizer: str
    source: str


def dump_idf(references: Mapping[str, Sequence[str]], *, tokenizer: str = "coco") -> str:
    """The document frequencies of ``references`` (captions by image id) as JSON that `read_idf` reads.

    n-grams of a single image are left out: CIDEr-D weighs them as it does those it has never seen.

    Raises:
        UsageError: An unknown tokenizer.
    """
    split = tokenize.tokenizer(tokenizer)
    counts = Counter[str]()
    for captions in references.values():
        counts.update({ngram for caption in captions for ngram in _ngrams(split(caption))})
    table = {
        "schema": SCHEMA,
        "tokenizer": tokenizer,
        "images": len(references),
        "counts": {ngram: count for ngram, count in sorted(counts.items()) if count > 1},
    }
    return json.dumps(table, ensure_ascii=False) + "\n"


def read_idf(path: Path) -> Idf:
    """Document frequencies out of a file with the text of `dump_idf`.

    Raises:
        UsageError: The file is absent or not such a file.
    """
    try:
        content = path.read_bytes()
        table = json.loads(content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a file of document frequencies") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON; give a file of document frequencies") from error
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        raise UsageError(f"{path}: not a file of document frequencies of schema {SCHEMA}; write it again")
    images, counts, tokenizer = table.get("images"), table.get("counts"), table.get("tokenizer")
    if not (isinstance(images, int) and images > 0 and isinstance(counts, dict) and isinstance(tokenizer, str)):
        raise UsageError(f"{path}: 'images', 'counts' or 'tokenizer' is missing or of a wrong type; write it again")
    for ngram, count in counts.items():
        if type(count) is not int or not 1 <= count <= images or not 1 <= len(ngram.split(" ")) <= MAX_ORDER:
            raise UsageError(
                f"{path}: {ngram!r} must be 1 to {MAX_ORDER} words and its count 1 to {images}, the count of images; "
                "write the file again"
            )
    return Idf(images, counts, tokenizer, f"file-{hashlib.sha256(content).hexdigest()[:12]}")


def _ngrams(tokens: Sequence[str]) -> list[str]:
    return [
        " ".join(tokens[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(tokens) - order + 1)
    ]
