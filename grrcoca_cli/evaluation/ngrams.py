"""Counts of n-grams as sparse matrices, each reference beside its image's caption, for BLEU, ROUGE-1 and CIDEr-D.

Dimensions: N images, M references of them all, U distinct n-grams of one order. Time and memory grow with the count of
tokens and no faster.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Tokens = Sequence[str]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_ORDER = 4
"""The longest n-gram that BLEU and CIDEr-D count."""


@dataclass(frozen=True)
class Order:
    """The n-grams of one length.

    Attributes:
        candidates: (N, U) counts.
        references: (M, U) counts.
        shared: (M, U), the smaller of the counts in a reference and in the candidate of its image.
        known: Which of the U each of the further captions of this length is, in their order.
    """

    candidates: csr_array
    references: csr_array
    shared: csr_array
    known: Ints


@dataclass(frozen=True)
class Pairs:
    """Every reference beside the candidate of its image.

    Attributes:
        image: (M,) the image of each reference, ascending.
        first: (N + 1,) where the references of each image begin.
        candidate_lengths: (N,) in tokens.
        reference_lengths: (M,) in tokens.
        orders: n-grams of length 1, 2 and so on.
    """

    image: Ints
    first: Ints
    candidate_lengths: Ints
    reference_lengths: Ints
    orders: tuple[Order, ...]

    def by_image(self, of_references: csr_array) -> csr_array:
        """(N, U): a matrix (M, U) with the entries of an image's references in one row, sorted and not yet merged."""
        shape = (len(self.candidate_lengths), of_references.shape[1])
        # copies, because sorting works in place
        entries = of_references.data.copy(), of_references.indices.copy()
        rows = csr_array((*entries, of_references.indptr[self.first]), shape=shape)
        rows.sort_indices()
        return rows


def pair_ngrams(
    candidates: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    *,
    max_order: int = MAX_ORDER,
    known: Sequence[Tokens] = (),
) -> Pairs:
    """Count the n-grams of all captions.

    Args:
        candidates: The caption of each image; may be empty.
        references: The references of each image, at least one.
        max_order: The longest n-gram.
        known: n-grams whose columns are wanted (`Order.known`); they are counted nowhere.
    """
    images, pairs = len(candidates), sum(map(len, references))
    captions = [*candidates, *chain.from_iterable(references), *known]
    first = np.concatenate([[0], np.cumsum(_lengths(references))])
    image = np.repeat(np.arange(images), np.diff(first))
    lengths = _lengths(captions)
    orders = []
    for order, counts in enumerate(count_ngrams(captions, lengths, max_order), start=1):
        theirs, further = counts[images : images + pairs], counts[images + pairs :]
        ours = counts[:images]
        columns = further[lengths[images + pairs :] == order].indices.astype(np.int64)
        orders.append(Order(ours, theirs, _shared(ours, theirs, image), columns))
    return Pairs(image, first, lengths[:images], lengths[images : images + pairs], tuple(orders))


def count_ngrams(captions: Sequence[Tokens], lengths: Ints, max_order: int) -> Iterable[csr_array]:
    """For each order a matrix (captions, U) of counts, float64 so that products of them are exact."""
    number: defaultdict[str, int] = defaultdict()
    number.default_factory = number.__len__
    words = np.fromiter(map(number.__getitem__, chain.from_iterable(captions)), np.int64, int(lengths.sum()))
    end = np.repeat(np.cumsum(lengths), lengths)  # of the caption that each word is in
    start, ngram = np.arange(len(words)), words
    for order in range(1, max_order + 1):
        if order > 1:  # an n-gram is the one shorter by a word and that word: two numbers packed into one
            whole = start + order <= end
            start, end = start[whole], end[whole]
            packed = ngram[whole] * len(number) + words[start + order - 1]
            ngram = np.unique(packed, return_inverse=True)[1]
        starts = np.concatenate([[0], np.cumsum(np.maximum(lengths - order + 1, 0))])
        distinct = int(ngram.max(initial=0)) + 1
        counts = csr_array((np.ones(len(ngram)), ngram.astype(np.int32), starts), shape=(len(captions), distinct))
        counts.sum_duplicates()
        yield counts


def _shared(candidates: csr_array, references: csr_array, image: Ints) -> csr_array:
    """(M, U): the smaller of both counts, looked up: a candidate's row is not repeated for each of its references."""
    width = references.shape[1]
    places = np.append(row_of_entry(candidates) * width + candidates.indices, np.iinfo(np.int64).max)
    wanted = image[row_of_entry(references)] * width + references.indices
    nearest = np.searchsorted(places, wanted)
    counts = np.where(places[nearest] == wanted, np.append(candidates.data, 0)[nearest], 0)
    entries = np.minimum(counts, references.data), references.indices.copy(), references.indptr.copy()
    shared = csr_array(entries, shape=references.shape)
    shared.eliminate_zeros()
    return shared


def row_of_entry(counts: csr_array) -> Ints:
    """The row of each stored entry."""
    return np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))


def _lengths(things: Sequence[Sequence[object]]) -> Ints:
    return np.fromiter(map(len, things), np.int64, len(things))
