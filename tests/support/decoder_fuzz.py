"""`python -m support.decoder_fuzz SEED ROUNDS`: every decoder of bytes against bad bytes, in a small process.

Prints one JSON object: how many inputs were tried, and what went wrong.
"""

import json
import logging
import resource
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from support.byte_decoders import ByteDecoder, byte_decoders
from support.worse_bytes import always, worse

LIMIT_S = 2.0
"""Of the process's own time: the machine may be busy with something else."""
LIMIT_BYTES = 300 << 20
_MAX_WRONG = 20


def main() -> None:
    """Run all."""
    seed, rounds = int(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.CRITICAL)
    wrong: list[str] = []
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        decoders = list(byte_decoders(Path(folder)))
        _limit_memory()
        before_bytes = _peak_bytes()
        for number, decoder in enumerate(decoders):
            random = Random(f"{seed}.{number}")
            inputs = [*decoder.samples, *always()]
            inputs += [worse(random.choice(decoder.samples), random) for _ in range(rounds)]
            for content in inputs:
                count += 1
                problem = _try(decoder, content)
                if problem is not None and len(wrong) < _MAX_WRONG:
                    wrong.append(f"{decoder.file}: {content[:60]!r} of {len(content)} bytes: {problem}")
    grown_bytes = _peak_bytes() - before_bytes
    print(json.dumps({"inputs": count, "decoders": len(decoders), "wrong": wrong, "grown_bytes": grown_bytes}))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _try(decoder: ByteDecoder, content: bytes) -> str | None:
    started_s = time.process_time()
    try:
        decoder.decode(content)
    except decoder.errors as error:
        try:
            str(error).encode()
        except UnicodeEncodeError:
            return f"its message cannot be shown: {error!r}"
    except BaseException as error:  # whatever else it is, it is what this looks for
        return f"{type(error).__name__}: {str(error)[:200]}"
    took_s = time.process_time() - started_s
    return f"took {took_s:.1f} s" if took_s > LIMIT_S else None


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:
        present = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + LIMIT_BYTES, present + LIMIT_BYTES))


if __name__ == "__main__":
    main()
