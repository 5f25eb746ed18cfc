"""Free memory of a machine and its cgroups, and the batch that is refused before it fills that memory."""

import json
import re
from pathlib import Path

import pytest
import torch

from grrcoca_cli.config import build_recipe
from grrcoca_cli.errors import OutOfResources
from grrcoca_cli.training import memory
from grrcoca_cli.training.ranks import ALONE
from grrcoca_cli.training.step import GradientStep
from tests.training.test_loop import pretrain

CPU = torch.device("cpu")
MB = 1_000_000


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8,192,000 bytes available and no cgroup, as its files say."""
    monkeypatch.setattr(memory, "_MEMINFO", put(tmp_path / "meminfo", "MemTotal: 16000 kB\nMemAvailable: 8000 kB\n"))
    monkeypatch.setattr(memory, "_OWN_GROUPS", put(tmp_path / "own", "1:cpu:/\n"))
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    return tmp_path


def test_free_memory_is_that_of_the_machine_where_no_group_has_a_limit(machine: Path) -> None:
    assert memory.free_memory() == 8_192_000
    put(machine / "own", "0::/job\n")
    put(machine / "groups" / "job" / "memory.max", "max\n")
    put(machine / "groups" / "job" / "memory.current", "5\n")
    assert memory.free_memory() == 8_192_000
    (machine / "meminfo").unlink()
    assert memory.free_memory() is None


def test_the_tightest_group_counts_with_its_droppable_pages(machine: Path) -> None:
    put(machine / "own", "0::/outer/job\n")
    for name, most, used in (("outer", 3000, 2000), ("outer/job", 5000, 1000)):
        put(machine / "groups" / name / "memory.max", f"{most}\n")
        put(machine / "groups" / name / "memory.current", f"{used}\n")
    put(machine / "groups" / "outer" / "memory.stat", "anon 7\ninactive_file 300\n")
    assert memory.free_memory() == 1300


def test_groups_of_the_first_version_count_as_well(machine: Path) -> None:
    put(machine / "own", "5:cpuset:/\n4:memory:/job\n0::/\n")
    group = machine / "groups" / "memory" / "job"
    put(group / "memory.limit_in_bytes", "4000\n")
    put(group / "memory.usage_in_bytes", "1500\n")
    put(group / "memory.stat", "inactive_file 1\ntotal_inactive_file 200\n")
    assert memory.free_memory() == 2700


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_batch_that_is_named_is_the_largest_that_fits(accumulation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 500 * MB)

    def check(batch_size: int) -> None:
        training = {"batch_size": batch_size, "accumulation": accumulation}
        recipe = build_recipe({"model": {"size": "tiny"}, "training": training}, "test")
        memory.check_memory(recipe, ALONE, CPU, "it")

    with pytest.raises(OutOfResources) as raised:
        check(4000)
    largest = int(re.findall(r"batch_size to at most (\d+)", str(raised.value))[0])
    check(largest)
    with pytest.raises(OutOfResources):
        check(largest + accumulation)


def test_where_nothing_fits_no_batch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: MB)
    recipe = build_recipe({"model": {"size": "tiny"}}, "test")
    with pytest.raises(OutOfResources, match=r"free: raise .*gradient_checkpointing.*model\.size"):
        memory.check_memory(recipe, ALONE, CPU, "it")
    memory.check_memory(recipe, ALONE, torch.device("cuda"), "it")  # the trial batch tells


def test_a_batch_too_large_for_memory_is_never_tried(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 12 * MB)
    monkeypatch.setattr(GradientStep, "backward", lambda *_: pytest.fail("the trial batch ran"))
    code, err = pretrain(phantom_shards, tmp_path / "run", "training.batch_size=32", "model.image_size=128")
    assert code == 5, err
    assert re.search(r"12 MB are free: set training\.batch_size to at most \d", err)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 5


def test_a_batch_larger_than_the_data_is_never_tried(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GradientStep, "backward", lambda *_: pytest.fail("the trial batch ran"))
    code, err = pretrain(phantom_shards, tmp_path / "run", "training.batch_size=100000")
    assert code == 2
    assert "set training.batch_size to at most" in err
