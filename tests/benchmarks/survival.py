"""The survival table: each row is run, and its figure printed against its target.

python tests/benchmarks/survival.py [--fast] [--rows 1,2,6]   exit 1 where a row misses its target
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from tests.survival.harness import open_bench
    from tests.survival.rows import ROWS

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fast", action="store_true", help="the tier of every CI run")
    parser.add_argument("--rows", default="", help="numbers, with commas; all by default")
    options = parser.parse_args()
    wanted = {int(number) for number in options.rows.split(",") if number}
    missed = 0
    with tempfile.TemporaryDirectory() as folder, open_bench(Path(folder)) as bench:
        print(f"{'row':>3}  {'behaviour':<46}  {'figure':<58}  {'target':<36}  ok")
        for number, row in ROWS:
            if wanted and number not in wanted:
                continue
            began = time.monotonic()
            found = row(bench, "fast" if options.fast else "full")
            print(found, f" ({time.monotonic() - began:.0f} s)", flush=True)
            for failure in found.failures:
                print(f"       {failure}", file=sys.stderr)
            missed += not found.ok
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
