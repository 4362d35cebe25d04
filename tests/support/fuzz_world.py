"""A whole service under a fuzz: every process and every border open, bystanders that must stay exact, and what may not
grow.

An attack is a function that does one thing and says what it was; whoever runs them counts. The service is a tiny real
model with a tokenizer and a chat template, so that text, grammars and helper processes are in reach.
"""

import contextlib
import math
import os
import random
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import grpc
import psutil
from support.bystanders import Bystanders
from support.checkpoints import build_hf_model, save_checkpoint
from support.service import LIMIT_S, Service, generation, serve
from support.supervised import wait_for
from support.tiny_tokenizer import TEMPLATE, save_letters_tokenizer

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

SECONDS = float(os.environ.get("PAGEWIRE_TEST_FUZZ_S", "10"))
SEED = int(os.environ.get("PAGEWIRE_TEST_SEED", "0"))
NUM_BYSTANDERS = 6
NUM_ATTACKERS = 4
MAX_MODEL_LEN = 256
MIB = 1 << 20
GROWTH_BYTES = 24 * MIB
"""Of a process, from the time that everything was met once; allocators keep some of what they had."""
GROWTH_BYTES_PER_MINUTE = MIB
DESCRIPTOR_SLACK = 12
SETTLE_S = 60.0
"""Until what attackers left has gone: half-open connections, above all."""

ROLES = ("serve", "pagewire.scheduler_svc.engine", "pagewire.scheduler_svc.frontend", "pagewire.worker", "gateway")
"""Words of the commands of those that must live on; a frontend's helpers have limits, and are made anew."""

Attack = Callable[[random.Random], str]
"""Does one thing, and says what; raises AssertionError where it was not met as it should be."""


class Used(NamedTuple):
    """By a process."""

    command: tuple[str, ...]
    rss_bytes: int
    num_descriptors: int
    """And threads."""

    @property
    def role(self) -> str:
        """Which of `ROLES` it has, or nothing."""
        return next((role for role in ROLES if role in self.command), "")

    @property
    def is_core(self) -> bool:
        """Whether it must live on."""
        return self.role != ""


def used(service: Service) -> dict[int, Used]:
    """By every process of the service."""
    found = {}
    supervisor = psutil.Process(service.process.pid)
    for each in (supervisor, *supervisor.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            num_descriptors = each.num_fds() + each.num_threads()
            found[each.pid] = Used(tuple(each.cmdline()), each.memory_info().rss, num_descriptors)
    return found


@dataclass(slots=True)
class FuzzWorld:
    """The service, and what is watched."""

    service: Service
    runtime_dir: Path
    tripwire: Path
    """A file that a pickle would make if anybody read it."""
    bystanders: Bystanders
    quiet: dict[int, "Used"]
    """By process, before the first attack."""
    sent: Counter[str] = field(default_factory=Counter)
    """By what attacks said."""

    @property
    def pickle(self) -> bytes:
        """Pickled code that makes the tripwire."""
        command = f"touch {self.tripwire}".encode()
        return b"cposix\nsystem\n(S'" + command + b"'\ntR."

    def run(
        self,
        attacks: Sequence[Attack],
        when_over: Callable[[], None],
        growth_bytes: int = GROWTH_BYTES,
        a_second: float = math.inf,
        bytes_each: int = 0,
        most_turned_away: float = 0.0,
    ) -> None:
        """Attack for `SECONDS`, let `when_over` close what they left open, and hold what must be held. At most
        `a_second` in a second: what one service can answer is measured elsewhere. A process may keep `bytes_each`
        of each attack, and `growth_bytes` in all. `most_turned_away`: calls of bystanders for each that is answered."""
        num_threads = NUM_ATTACKERS
        complaints: list[str] = []
        lock = threading.Lock()
        started_s = time.monotonic()

        def attack(number: int) -> None:
            draw = random.Random(f"{SEED}.{number}")
            while time.monotonic() < started_s + SECONDS and not complaints:
                try:
                    said = draw.choice(attacks)(draw)
                except Exception as error:
                    complaints.append(f"{type(error).__name__}: {error}")
                    return
                with lock:
                    self.sent[said] += 1
                self._wait(started_s + sum(self.sent.values()) / a_second)

        with self.bystanders.watching() as counts, ThreadPoolExecutor(num_threads) as threads:
            running = [threads.submit(attack, number) for number in range(num_threads)]
            self._wait(started_s + SECONDS / 3)
            early = used(self.service)
            for each in running:
                each.result(SECONDS + SETTLE_S)
            when_over()
        took_s = time.monotonic() - started_s
        print(f"{sum(self.sent.values())} in {took_s:.0f} s: {dict(self.sent.most_common())}")
        turned_away = self.bystanders.turned_away
        print(f"bystanders were answered {sum(counts)} times, and turned away {turned_away} times before")
        assert not complaints, complaints
        assert not self.bystanders.wrong, self.bystanders.wrong
        assert min(counts) > 0
        assert turned_away <= sum(counts) * most_turned_away
        self._settled(
            early, growth_bytes + int(GROWTH_BYTES_PER_MINUTE * took_s / 60) + bytes_each * sum(self.sent.values())
        )
        print(f"dropped: {dict(self.service.load().dropped_by_kind)}")
        assert not self.tripwire.exists(), "somebody has run a pickle"

    def _wait(self, until_s: float) -> None:
        threading.Event().wait(max(0.0, until_s - time.monotonic()))

    def _settled(self, early: dict[int, Used], allowed: int) -> None:
        """Nothing runs any more, the processes are the same, and none has grown."""
        core = {pid for pid, was in self.quiet.items() if was.is_core}
        now = used(self.service)
        ended = [self.quiet[pid].command for pid in core - now.keys()]
        assert not ended, f"processes have ended: {ended}"
        self.service.wait_for_load(
            lambda load: load.used_blocks == load.running_sequences == load.waiting_sequences == 0
        )

        def still_has() -> list[str]:
            now = used(self.service)
            return [
                f"{was.role}: {was.num_descriptors} descriptors and threads, now {now[pid].num_descriptors}"
                for pid, was in self.quiet.items()
                if was.is_core and now[pid].num_descriptors > was.num_descriptors + DESCRIPTOR_SLACK
            ]

        with contextlib.suppress(AssertionError):
            wait_for(lambda: not still_has(), "descriptors and threads to be given back", SETTLE_S)
        assert not still_has(), still_has()
        for pid, is_now in used(self.service).items():
            if pid in early:
                grown = is_now.rss_bytes - early[pid].rss_bytes
                assert grown < allowed, f"{is_now.command} grew by {grown / MIB:.0f} MiB"


@contextmanager
def fuzz_world(folder: Path) -> Iterator[FuzzWorld]:
    """A service with a gateway, vLLM's service and KV events beside its own."""
    checkpoint = save_checkpoint(build_hf_model("qwen3-tied"), folder)
    save_letters_tokenizer(folder, checkpoint.config.vocab_size)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with (
        tempfile.TemporaryDirectory(prefix="pw") as runtime_dir,
        serve(
            model=str(folder),
            device="cpu",
            dtype="float32",
            num_threads=1,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=32,
            runtime_dir=runtime_dir,
            openai="127.0.0.1:0",
            vllm_grpc=True,
            kv_events=f"ipc://{runtime_dir}/events",
            kv_events_replay=f"ipc://{runtime_dir}/replay",
            log_level="error",
        ) as service,
    ):
        bystanders = Bystanders(service, NUM_BYSTANDERS)
        chat = pb.Chat(messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="hello")])
        for warm in (generation(chat=chat), generation([1, 2], constraint=pb.Constraint(regex="a+"))):
            with contextlib.suppress(grpc.RpcError):  # what a fuzz will use is there before it
                service.inference.Generate(inference_pb2.GenerateRequest(generation=warm), timeout=LIMIT_S)
        with urllib.request.urlopen(f"{service.said['openai_url']}/models", timeout=LIMIT_S) as answer:
            assert answer.status == 200
        yield FuzzWorld(service, Path(runtime_dir), folder / "tripwire", bystanders, used(service))
