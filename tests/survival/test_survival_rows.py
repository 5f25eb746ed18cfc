"""Every row of the survival table meets its target: few trials in each run, many under the mark ``slow``."""

from collections.abc import Callable, Iterator

import pytest

from tests.survival.harness import Bench, Figure, Tier, open_bench
from tests.survival.rows import ROWS

Row = Callable[[Bench, Tier], Figure]
NAMED = [pytest.param(row, id=f"{number}-{row.__name__}") for number, row in ROWS]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with open_bench(tmp_path_factory.mktemp("survival")) as opened:
        yield opened


def check(row: Row, bench: Bench, tier: Tier) -> None:
    found = row(bench, tier)
    assert found.ok, "\n".join([str(found), *found.failures])


@pytest.mark.parametrize("row", NAMED)
def test_survival(row: Row, bench: Bench) -> None:
    check(row, bench, "fast")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("row", NAMED)
def test_survival_in_full(row: Row, bench: Bench) -> None:
    check(row, bench, "full")
