"""Bytes that a decoder should not take: made from those that it takes, and from nothing, the same for the same seed."""

import math
from collections.abc import Iterator
from random import Random

import msgspec

_NUMBERS = (0, -1, 2**31, 2**40, 2**63, 2**64 - 1, -(2**63), math.nan, math.inf, -math.inf, 1e308, 5e-324, 0.5)
_TEXTS = (
    "",
    "register",
    "submit",
    "abort",
    "hello",
    "plan",
    "begin",
    "tokens",
    "load",
    "info",
    "\u0000",
    "é" * 3,
    "x" * 99,
)
_TAIL_BYTES = 40_000


def always() -> Iterator[bytes]:
    """Those that were found to matter, in msgpack, JSON and TOML."""
    yield b""
    yield b"\x92\xa1\xff\x01"  # a tag that is no UTF-8
    for text in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"):
        yield bytes([0xA0 | len(text)]) + text
        yield b'{"model": "' + text + b'"}'
        yield b'model = "' + text + b'"'
        yield text
    for header in (b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"):  # counts that no bytes follow
        for count in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x04\x00\x00\x00"):
            yield header + count
            yield b"\x92\xa6submit" + header + count
            yield b"\x9c\xa6submit\x01\xa1r" + header + count
    for opening in (
        b"\x91",
        b"\x81\xa1a",
        b"\xdc\x00\x01",
        b"[",
        b'{"a":',
        b'{"messages":[',
        b"a=[",
        b"a={a=",
        b"a=[[",
    ):
        yield opening * (_TAIL_BYTES // len(opening))
    yield b"max_n=" + b"[" * 1_000
    for dots in (b"a.", b"model.", b'"a".'):
        yield dots * 20_000 + b"a=1"
        yield dots * 900 + b"a=1"
    for digits in (
        b"9" * 5_000,
        b"0x" + b"f" * 8_000,
        b"1e999",
        b"-1e999",
        b"NaN",
        b"Infinity",
        b"nan",
        b"inf",
        b"1" * 30,
    ):
        yield digits
        yield b'{"pid": ' + digits + b"}"
        yield b"max_n = " + digits
        yield b"load_interval_s = " + digits
    yield b'"\\ud800"'
    yield b'{"prompt": "\\ud800"}'
    yield b'{"\\udfff": 1}'
    yield b"\xff\xfe" + "{}".encode("utf-16-le")
    yield b"\x00" * 4_096


def worse(sample: bytes, random: Random) -> bytes:
    """A sample with something wrong in it, most of the time."""
    match random.randrange(7):
        case 0:
            return sample[: random.randrange(len(sample) + 1)]
        case 1:
            return _spliced(sample, random, random.randbytes(random.randrange(1, 9)))
        case 2:
            changed = bytearray(sample or b"\0")
            for _ in range(random.randrange(1, 5)):
                changed[random.randrange(len(changed))] = random.randrange(256)
            return bytes(changed)
        case 3:
            return _spliced(sample, random, random.choice(_PIECES))
        case 4:
            return _with_other_values(sample, random)
        case 5:
            return msgspec.msgpack.encode(_value(random, 3))
        case _:
            return random.randbytes(random.randrange(200))


_PIECES = (
    b"\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xcf" + b"\xff" * 8,
    b"\xcb\x7f\xf8" + b"\0" * 6,
    b"\x91" * 2_000,
    b"[" * 2_000,
    b"null",
    b"1e400",
    b"9" * 4_400,
    b'"\\ud800"',
    b"\n",
    b"=",
    b"{}",
    b"[]",
)


def _spliced(sample: bytes, random: Random, piece: bytes) -> bytes:
    at, until = sorted((random.randrange(len(sample) + 1), random.randrange(len(sample) + 1)))
    return sample[:at] + piece + sample[until if random.random() < 0.5 else at :]


def _with_other_values(sample: bytes, random: Random) -> bytes:
    """The same message with other values in it, where it is one."""
    for library in (msgspec.msgpack, msgspec.json):
        try:
            return library.encode(_changed(library.decode(sample), random))
        except (msgspec.DecodeError, ValueError, TypeError, OverflowError, RecursionError):
            continue
    return sample


def _changed(value: object, random: Random) -> object:
    if isinstance(value, list) and value and random.random() < 0.95:
        changed = list(value)
        index = random.randrange(len(changed))
        changed[index] = _changed(changed[index], random)
        return changed if random.random() < 0.9 else changed[:-1]
    if isinstance(value, dict) and value and random.random() < 0.95:
        key = random.choice(list(value))
        return {**value, key: _changed(value[key], random)}
    return _value(random, 2)


def _value(random: Random, depth: int) -> object:
    kind = random.randrange(7 if depth else 4)
    match kind:
        case 0:
            return random.choice(_NUMBERS)
        case 1:
            return random.choice(_TEXTS)
        case 2:
            return random.randbytes(random.randrange(9))
        case 3:
            return random.choice((None, True, False))
        case 4:
            return {random.choice(_TEXTS): _value(random, depth - 1) for _ in range(random.randrange(3))}
        case _:
            return [_value(random, depth - 1) for _ in range(random.randrange(6))]
