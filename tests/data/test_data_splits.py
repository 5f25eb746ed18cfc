from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grrcoca_cli.data.base import ListDataset, Sample, SubsetDataset
from grrcoca_cli.data.splits import count_overlaps, split_by_hash
from grrcoca_cli.errors import UsageError


def dataset_of(keys: list[str], groups: list[str] | None = None) -> ListDataset:
    fields = [{"patient": group} if group else {} for group in groups or [""] * len(keys)]
    return ListDataset([Sample(key, key.encode(), (key,), own) for key, own in zip(keys, fields, strict=True)])


def keys_of(dataset: SubsetDataset) -> list[str]:
    return [dataset.key(index) for index in range(len(dataset))]


@given(keys=st.lists(st.text(), unique=True, max_size=60), fraction=st.floats(0, 0.9))
def test_every_sample_is_on_one_side_and_stays_there(keys: list[str], fraction: float) -> None:
    train, validation = split_by_hash(dataset_of(keys), fraction)
    assert Counter(keys_of(train)) + Counter(keys_of(validation)) == Counter(keys)
    assert keys_of(train) == [key for key in keys if key in set(keys_of(train))]  # order is kept
    assert fraction > 0 or not len(validation)
    assert len(validation) or not (fraction > 0 and len(keys) > 1)
    again = split_by_hash(dataset_of(keys[::-1]), fraction)[1]
    assert set(keys_of(again)) == set(keys_of(validation))


def test_the_cut_is_the_same_on_every_machine_and_near_its_fraction() -> None:
    keys = [f"{number:09d}" for number in range(10_000)]
    _, validation = split_by_hash(dataset_of(keys), 0.02)
    assert 160 <= len(validation) <= 240
    assert keys_of(validation)[:3] == ["000000025", "000000044", "000000115"]
    larger = split_by_hash(dataset_of(keys), 0.05)[1]
    assert set(keys_of(validation)) < set(keys_of(larger))


def test_a_small_set_gives_at_least_one() -> None:
    train, validation = split_by_hash(dataset_of(["a", "b", "c"]), 1e-9)
    assert (len(train), len(validation)) == (2, 1)
    assert len(split_by_hash(dataset_of(["a"]), 1e-9)[1]) == 0
    assert len(split_by_hash(dataset_of(["a", "b"]), 0)[1]) == 0


def test_a_group_stays_together() -> None:
    keys = [str(number) for number in range(600)]
    groups = [str(number % 50) if number % 7 else "" for number in range(600)]
    dataset = dataset_of(keys, groups)
    train, validation = split_by_hash(dataset, 0.3, "patient")
    assert len(train) > 100
    assert len(validation) > 100
    sides = [{subset[index].fields.get("patient") for index in range(len(subset))} for subset in (train, validation)]
    assert sides[0] & sides[1] == {None}
    assert "group" not in count_overlaps(train, validation, "patient")
    apart = split_by_hash(dataset, 0.3)
    assert count_overlaps(*apart, "patient")["group"] > 0


def test_an_unknown_group_column_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="'study' is in no sample; the columns are: patient"):
        split_by_hash(dataset_of(["a", "b"], ["1", ""]), 0.5, "study")


def test_overlaps_by_kind(tmp_path: Path) -> None:
    big = bytes(range(256)) * 64
    other = big[:-1] + b"x"
    for name, data in (("1.png", big), ("2.png", big), ("3.png", other), ("4.png", b"")):
        (tmp_path / name).write_bytes(data)
    train = ListDataset(
        [
            Sample("1", tmp_path / "1.png", ("one", "shared"), {"patient": "p"}),
            Sample("same", tmp_path / "4.png", ("y",), {}),
        ]
    )
    validation = ListDataset(
        [
            Sample("2", tmp_path / "2.png", ("two",), {"patient": "p"}),
            Sample("3", tmp_path / "3.png", ("shared", "shared"), {"patient": "q"}),
            Sample("same", b"", ("z",), {}),
            Sample("5", big, ("v",), {}),
            Sample("6", tmp_path / "none.png", ("w",), {}),
        ]
    )
    assert count_overlaps(train, validation, "patient") == {"key": 1, "group": 1, "picture": 2, "caption": 1}
    assert count_overlaps(train, SubsetDataset(validation, np.array([1, 4]))) == {"caption": 1}


def test_a_view_shows_the_same_samples() -> None:
    dataset = dataset_of(["a", "b", "c"])
    view = SubsetDataset(dataset, np.array([2, 0]))
    assert [view[index] for index in range(len(view))] == [dataset[2], dataset[0]]
    assert view.peek(0) == dataset[2]
    assert view.key(1) == "a"
