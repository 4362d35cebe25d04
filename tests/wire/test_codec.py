"""The door for bytes: what comes through it, and the one error that comes out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagewire.wire.codec import MAX_TOML_BYTES, Codec, JsonCodec, WireError, decode_json, decode_text, decode_toml
from pagewire.wire.columns import pack, pack_pairs, unpack, unpack_pairs
from pagewire.wire.control import ToChild
from pagewire.wire.plan import FromWorker, WorkerHello
from pagewire.wire.requests import FromFrontend, Register, ToFrontend
from pagewire.wire.sampling import SamplingParams

TESTS = Path(__file__).parents[1]
ROUNDS = int(os.environ.get("PAGEWIRE_TEST_RUNS", "150"))


def test_every_decoder_of_bytes_raises_its_own_error_alone_and_stays_small() -> None:
    """A process of its own, because it may not grow: hostile counts and nestings, bad text and numbers, mutations."""
    answer = subprocess.run(
        [sys.executable, "-m", "support.decoder_fuzz", "7", str(ROUNDS)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    assert said["wrong"] == []
    assert said["inputs"] > said["decoders"] * ROUNDS
    assert said["grown_bytes"] < 100 << 20


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"\x92\xa1\xff\x01", "text that is not UTF-8"),
        (b"\x92\xa8register" + b"\x91" * 50_000, "nested too deeply|Expected"),
        (b"\x93\xa8register\xcf\x00\x00\x01\x00\x00\x00\x00\x00\x00", "Expected `int`"),
        (b"\xdd\xff\xff\xff\xff", "truncated"),
        (b"", "truncated"),
    ],
)
def test_a_frame_that_is_no_message(frame: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        Codec[FromFrontend](FromFrontend).decode(frame)


def test_a_frame_or_a_line_over_the_limit() -> None:
    with pytest.raises(WireError, match="over the limit of 3"):
        Codec[FromFrontend](FromFrontend, 3).decode(b"\0" * 4)
    with pytest.raises(WireError, match="over the limit of 3"):
        JsonCodec[ToChild](ToChild, 3).decode(b"null")


@pytest.mark.parametrize("line", [b'{"type": "\xff"}', b"[" * 100_000, b'{"type": "drain", "delay_s": NaN}', b"1e999"])
def test_a_line_that_is_no_message(line: bytes) -> None:
    with pytest.raises(WireError, match="is not a message"):
        JsonCodec[ToChild](ToChild).decode(line)


def test_files() -> None:
    assert decode_json(b'{"a": 1}', dict[str, int]) == {"a": 1}
    assert decode_toml("a = 'é'".encode()) == {"a": "é"}
    assert decode_text("é".encode()) == "é"
    for wrong in (b'{"a": "\xff"}', b"[" * 100_000, b"9" * 5_000, b""):
        with pytest.raises(WireError):
            decode_json(wrong, dict[str, int])
    for wrong in (b"a = '\xff'", b"a = " + b"[" * 5_000, b"a = " + b"9" * 5_000, b"a.a" * 9_000):
        with pytest.raises(WireError):
            decode_toml(wrong)
    with pytest.raises(WireError, match=f"the limit is {MAX_TOML_BYTES}"):
        decode_toml(b"#\n" * MAX_TOML_BYTES)
    with pytest.raises(WireError, match=r"not UTF-8 \(byte 0xff\)"):
        decode_text(b"a\xff")


def test_columns() -> None:
    assert unpack(pack([1, -2])).tolist() == [1, -2]
    assert unpack_pairs(pack_pairs([(1, 2), (3, 4)])).tolist() == [[1, 2], [3, 4]]
    for torn in (b"abc", b"abcde"):
        with pytest.raises(WireError, match="no column of int32"):
            unpack(torn)
    with pytest.raises(WireError, match="no column of int32 pairs"):
        unpack_pairs(pack([1, 2, 3]))


def test_numbers_that_no_reader_could_hold_are_no_message() -> None:
    register, to_frontend = Codec[FromFrontend](FromFrontend), Codec[ToFrontend](ToFrontend)
    for number in (-1, 1024, 2**40, 2**64 - 1):
        with pytest.raises(WireError):
            register.decode(register.encode(Register(number, 0)))
    for incarnation in (-1, 2**31, 2**40):
        with pytest.raises(WireError):
            register.decode(register.encode(Register(0, incarnation)))
    started = '["tokens", [[1, 0, NUMBER]], "", "", []]'
    for number in ("-1.0", "1e300"):
        with pytest.raises(WireError):
            to_frontend.decode(Codec[object](object).encode(json.loads(started.replace("NUMBER", number))))
    hello = ["hello", 2, 0, 0, 1, 1, 1, 1, 1, 2**60, 1, "", "", {}]
    with pytest.raises(WireError, match="Expected `int`"):
        Codec[FromWorker](FromWorker).decode(Codec[object](object).encode(hello))
    assert isinstance(
        Codec[FromWorker](FromWorker).decode(Codec[object](object).encode([*hello[:9], 1, *hello[10:]])), WorkerHello
    )


@pytest.mark.parametrize(
    ("sampling", "problem"),
    [
        (SamplingParams(float("nan"), 0, 1.0, 0), "temperature is nan"),
        (SamplingParams(float("inf"), 0, 1.0, 0), "temperature is inf"),
        (SamplingParams(-0.1, 0, 1.0, 0), "temperature is -0.1"),
        (SamplingParams(1e39, 0, 1.0, 0), "temperature is 1e"),
        (SamplingParams(1.0, -1, 1.0, 0), "top_k is -1"),
        (SamplingParams(1.0, 0, float("nan"), 0), "top_p is nan"),
        (SamplingParams(1.0, 0, 0.0, 0), "top_p is 0.0"),
        (SamplingParams(1.0, 0, 1e-50, 0), "top_p is 1e-50"),  # 0 in float32
        (SamplingParams(1.0, 0, 1.1, 0), "top_p is 1.1"),
        (SamplingParams(1.0, 0, 1.0, -1), "seed is -1"),
        (SamplingParams(1.0, 0, 1.0, 2**64), "seed is 18446744073709551616"),
    ],
)
def test_what_nothing_can_be_drawn_with(sampling: SamplingParams, problem: str) -> None:
    assert (sampling.problem() or "").startswith(problem)


def test_what_can_be_drawn_with_has_no_problem() -> None:
    for sampling in (SamplingParams(0.0, 0, 1.0, 0), SamplingParams(100.0, 2**31, 1e-40, 2**64 - 1)):
        assert sampling.problem() is None
