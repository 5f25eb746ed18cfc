"""The order in which an epoch reads remote shards: a few at a time, and yet well mixed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def windowed_order(
    counts: Sequence[int] | NDArray[np.int64], window: int, generator: np.random.RandomState
) -> NDArray[np.int64]:
    """A permutation that goes through windows of shards: shards are permuted, then the samples within each window.

    Args:
        counts: Samples of each shard, (shards,); samples are numbered through, shard after shard.
        window: Shards that are mixed with each other.
        generator: Old NumPy's, whose stream never changes (NEP 19).

    Returns:
        (samples,); a function of the arguments and the generator's state alone.
    """
    counts = np.asarray(counts, dtype=np.int64)
    firsts = np.cumsum(counts) - counts
    shards = generator.permutation(len(counts))
    windows = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(shards), window):
        together = [np.arange(firsts[shard], firsts[shard] + counts[shard]) for shard in shards[start : start + window]]
        windows.append(generator.permutation(np.concatenate(together)))
    return np.concatenate(windows)
