import io
import multiprocessing
import operator
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grrcoca_cli.data.base import ListDataset, Sample
from grrcoca_cli.data.batches import (
    Batch,
    BatchReader,
    batch_indices,
    evaluation_batches,
    sample_seed,
    steps_per_epoch,
    training_batches,
)
from grrcoca_cli.data.images import fit_image
from grrcoca_cli.data.pictures import read_picture
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.errors import OutOfResources, UsageError

SIZE = 8


def picture(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 10), level, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def samples(count: int) -> list[Sample]:
    return [
        Sample(f"key-{number}", picture(10 * number), tuple(f"caption {number} of {which}" for which in "abc"))
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def reader() -> BatchReader:
    dataset = ListDataset(samples(10))
    captions = [caption for sample in dataset.samples for caption in sample.captions]
    tokenizer = CaptionTokenizer.train(captions, 300)
    # image * seed is not a sensible augmentation, but shows the seed and can be sent to a worker
    return BatchReader(dataset, read_picture, tokenizer, SIZE, 16, augment=operator.mul, seed=3)


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.tokens, second.tokens)
        and first[2:] == second[2:]
    )


@given(
    length=st.integers(1, 60),
    batch_size=st.integers(1, 60),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_is_a_permutation_in_whole_batches(length: int, batch_size: int, seed: int, epoch: int) -> None:
    if length < batch_size:
        with pytest.raises(UsageError, match=f"{length} samples, fewer than one batch of {batch_size}"):
            batch_indices(length, batch_size, seed, 0)
        return
    steps = steps_per_epoch(length, batch_size)
    batches = [batch_indices(length, batch_size, seed, epoch * steps + step) for step in range(steps)]
    assert all(len(batch) == batch_size for batch in batches)
    seen = [index for batch in batches for index in batch]
    assert len(set(seen)) == len(seen) == length - length % batch_size
    assert set(seen) <= set(range(length))


def test_the_order_is_the_same_on_every_machine_and_differs_by_epoch_and_seed() -> None:
    assert batch_indices(10, 5, seed=0, step=0) == [3, 8, 2, 4, 5]
    epochs = {tuple(batch_indices(50, 50, 0, step)) for step in range(20)}
    seeds = {tuple(batch_indices(50, 50, seed, 0)) for seed in range(20)}
    assert len(epochs) == len(seeds) == 20


def test_samples_left_out_of_one_epoch_come_in_others() -> None:
    seen = {index for step in range(60) for index in batch_indices(7, 4, 0, step)}
    assert seen == set(range(7))


def test_tokens_images_and_keys_belong_together(reader: BatchReader) -> None:
    plain = replace(reader, augment=None, mean=(0.0, 0.1, 0.2), std=(1.0, 2.0, 4.0))
    for batch in training_batches(plain, 4, 0, 5):
        assert batch.images.shape == (4, 3, SIZE, SIZE)
        assert batch.images.dtype == torch.float32
        assert batch.tokens.dtype == torch.long
        lengths = (batch.tokens != plain.tokenizer.pad_id).sum(1)
        assert lengths.max() == batch.tokens.shape[1]
        for row, key in enumerate(batch.keys):
            number = int(key.removeprefix("key-"))
            assert batch.captions[row].startswith(f"caption {number} of ")
            assert batch.tokens[row, : lengths[row]].tolist() == plain.tokenizer.encode(batch.captions[row], 16)
            expected = fit_image(read_picture(picture(10 * number)), SIZE)
            for channel, (mean, std) in enumerate(zip(plain.mean, plain.std, strict=True)):
                torch.testing.assert_close(batch.images[row, channel], (expected[channel] - mean) / std)


def test_resuming_at_any_step_gives_the_tail(reader: BatchReader) -> None:
    whole = list(training_batches(reader, 3, 0, 8))
    assert len(whole) == 8
    for start in range(9):
        tail = list(training_batches(reader, 3, start, 8))
        assert len(tail) == 8 - start
        assert all(same(first, second) for first, second in zip(tail, whole[start:], strict=True))


def test_worker_processes_change_nothing(reader: BatchReader) -> None:
    state = torch.get_rng_state()
    alone = list(training_batches(reader, 3, 1, 9))
    helped = list(training_batches(reader, 3, 1, 9, workers=2))
    assert len(helped) == 8
    assert all(same(first, second) for first, second in zip(helped, alone, strict=True))
    in_order = list(evaluation_batches(reader, 4, workers=2))
    assert all(same(first, second) for first, second in zip(in_order, evaluation_batches(reader, 4), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_group_signal_leaves_workers_alone_and_a_killed_one_is_an_error(reader: BatchReader) -> None:
    batches = training_batches(reader, 1, 0, 1000, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    for _ in range(20):  # more than are read ahead
        assert len(next(batches).keys) == 1
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(OutOfResources, match="reading process was killed"):
        list(batches)


def test_an_error_in_a_worker_keeps_its_kind(reader: BatchReader) -> None:
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        list(training_batches(replace(reader, augment=torch.Tensor.view, seed=5), 1, 0, 2, workers=1))


def test_workers_end_when_the_iteration_is_given_up(reader: BatchReader) -> None:
    batches = training_batches(reader, 1, 0, 1000, workers=1)
    next(batches)
    batches.close()
    assert multiprocessing.active_children() == []


def test_augmentation_and_caption_depend_on_seed_epoch_and_key_alone(reader: BatchReader) -> None:
    def uses(each: BatchReader, batch_size: int, epochs: int) -> dict[tuple[int, str], tuple[float, str]]:
        steps = 10 // batch_size
        found = {}
        for step, batch in enumerate(training_batches(each, batch_size, 0, epochs * steps)):
            for image, key, caption in zip(batch.images, batch.keys, batch.captions, strict=True):
                found[step // steps, key] = (float(image.max()), caption)
        return found

    whole, pairs = uses(reader, 10, 40), uses(reader, 2, 40)
    assert whole == pairs
    assert len(whole) == 400
    assert Counter(caption[-1] for _, caption in whole.values()).keys() == {"a", "b", "c"}
    assert len({brightness for (_, key), (brightness, _) in whole.items() if key == "key-5"}) == 40
    reordered = replace(reader, dataset=ListDataset(reader.dataset.samples[::-1]))
    assert uses(reordered, 5, 4) == uses(reader, 5, 4)
    assert uses(replace(reader, seed=4), 5, 4) != uses(reader, 5, 4)


def test_sample_seeds_fit_every_generator() -> None:
    seeds = {sample_seed(0, epoch, key, use) for epoch in range(9) for key in ("a", "b\udcff") for use in ("x", "y")}
    assert len(seeds) == 36
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_evaluation_takes_each_sample_once_in_order(reader: BatchReader) -> None:
    batches = list(evaluation_batches(reader, 4))
    assert [len(batch.keys) for batch in batches] == [4, 4, 2]
    assert [key for batch in batches for key in batch.keys] == [f"key-{number}" for number in range(10)]
    assert all(caption.endswith(" a") for batch in batches for caption in batch.captions)
    assert max(float(batch.images.max()) for batch in batches) <= 1  # not augmented
    assert list(evaluation_batches(replace(reader, dataset=ListDataset([])), 4)) == []


def test_unreadable_pictures_are_left_out_and_counted(reader: BatchReader, tmp_path: Path) -> None:
    bad = [Sample("x", b"", ("c",)), Sample("y", b"no picture", ("c",)), Sample("z", tmp_path / "none.png", ("c",))]
    mixed = replace(reader, dataset=ListDataset([*bad, *samples(3)]))
    (batch,) = evaluation_batches(mixed, 6)
    assert batch.keys == ["key-0", "key-1", "key-2"]
    assert batch.images.shape[0] == batch.tokens.shape[0] == 3
    assert batch.skipped == {"empty file": 1, "not an image": 1, "no such file": 1}
    (empty,) = evaluation_batches(replace(reader, dataset=ListDataset(bad)), 6)
    assert empty.keys == empty.captions == []
    assert empty.images.shape == (0, 3, SIZE, SIZE)
    assert empty.tokens.shape == (0, 0)
    assert empty.skipped.total() == 3


def test_the_store_changes_nothing_but_the_count_of_readings(reader: BatchReader) -> None:
    readings: Counter[bytes] = Counter()

    def counting(source: bytes) -> np.ndarray:
        readings[source] += 1
        return read_picture(source)

    stored = replace(reader, read_image=counting, augment=_scribble, in_memory=True)
    plain = replace(reader, augment=_scribble)
    first, second = (list(training_batches(each, 5, 0, 8)) for each in (stored, plain))
    assert all(same(one, other) for one, other in zip(first, second, strict=True))
    assert len(readings) == 10
    assert set(readings.values()) == {1}
    with pytest.raises(UsageError, match="in_memory"):
        training_batches(stored, 5, 0, 8, workers=1)


def _scribble(image: torch.Tensor, seed: int) -> torch.Tensor:
    return image.add_(seed % 7)


def test_a_set_smaller_than_a_batch_is_refused_at_once(reader: BatchReader) -> None:
    with pytest.raises(UsageError, match="10 samples, fewer than one batch of 11: set"):
        training_batches(reader, 11, 0, 5)
