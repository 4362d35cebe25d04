"""Faults under load, and what the streams make of them: `bash tests/run.sh faults`.

    bash tests/run.sh faults                           every row, ten moments each: about an hour on two cores
    bash tests/run.sh faults --moments 2               the same with two
    bash tests/run.sh faults --only "SIGKILL of the worker" --dtype bfloat16
    bash tests/run.sh faults --soak 1800               random faults every 20 s for half an hour, and nothing else

64 streams of every class run through the client on a small random Qwen3, recorded without faults first. Each row
strikes at random moments; whatever a client has in the end must be what was recorded, without an error, and no pause
may be longer than its bound. Prints each row as it is done, then a table. Exits with 1 where a row does not hold.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import long
from faults.bench import Bench
from faults.load import small_qwen3
from faults.moments import DEFAULT_MODEL, ONE_RANK, SUPERVISOR, TWO_RANKS, Moments
from faults.rows import Table

DTYPES = ("float32", "bfloat16")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/run.sh faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=10, help="of each fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="rows that have one of these in their name"
    )
    parser.add_argument("--cancels", type=int, default=20_000)
    parser.add_argument(
        "--soak", type=float, metavar="S", help="random faults every 20 s for so long, and nothing else"
    )
    args = parser.parse_args()
    with small_qwen3() as model:
        table, bench = Table(args.only), Bench(str(model))
        moments = Moments(table, bench, args.moments, args.seed)
        for dtype in args.dtype:
            if args.soak:
                long.soak(table, bench, dtype, args.soak, args.seed)
            else:
                table.part(ONE_RANK, partial(moments.one_rank, dtype))
        if not args.soak:
            table.part(TWO_RANKS, moments.two_ranks)
            table.part(DEFAULT_MODEL, moments.default_model)
            table.part(SUPERVISOR, moments.supervisor)
            table.part([f"{args.cancels} cancels"], partial(long.cancels, table, bench, args.cancels, args.seed))
    broken = [row for row in table.rows if not row.holds]
    print(f"{len(table.rows) - len(broken)} of {len(table.rows)} rows hold")
    return 1 if broken or not table.rows else 0


if __name__ == "__main__":
    sys.exit(main())
