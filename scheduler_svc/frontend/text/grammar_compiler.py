"""The grammar compiler: languages become grammars in processes of their own, within limits of time and memory.

`grammar_process` explains why a process, `helper_pool` how they are kept. The first is started by the first language:
few servers need one. A frontend that replaces another does not wait for that. It knows neither gRPC nor masks.
"""

from collections import OrderedDict
from dataclasses import dataclass

from pagewire.scheduler_svc.frontend.limits import MAX_CONSTRAINT_BYTES
from pagewire.scheduler_svc.frontend.text.grammar_process import Compile, Compiled, FromCompiler, Prepare, ToCompiler
from pagewire.scheduler_svc.frontend.text.helper_pool import HelperEndedError, HelperKind, HelperPool, PoolLimits
from pagewire.scheduler_svc.frontend.text.helper_process import Prepared, Refused
from pagewire.scheduler_svc.frontend.text.languages import Language
from pagewire.wire.codec import Codec
from pagewire.wire.model import ModelSpec

_KILL_GRACE_S = 2.0
"""How long after its own alarm a compiler, behind everything else on the machine, must have answered."""
_REFUSED_CHARACTERS = MAX_CONSTRAINT_BYTES
"""What the language of a refusal is counted as: at most so much."""


class LanguageRefusedError(Exception):
    """The language cannot be compiled, or not within the limits; the message says why."""


@dataclass(frozen=True, kw_only=True)
class CompileLimits:
    """What compiling one language may use, and how many there may be."""

    cpu_limit_s: float = 1.0
    time_limit_s: float = 10.0
    """Of waiting for the processor too."""
    memory_limit_bytes: int = 512 * 1024 * 1024
    max_processes: int = 2
    max_waiting: int = 256
    max_remembered_characters: int = 8 * 1024 * 1024
    """Of languages and what they became, so that a schema that comes again is not compiled again."""


class _Answers:
    """What languages became, those that were asked for last: the same language always becomes the same. One that met a
    limit of time is not among them, because another time it may not."""

    def __init__(self, max_characters: int) -> None:
        self._max_characters = max_characters
        self._entries: OrderedDict[Language, tuple[FromCompiler, int]] = OrderedDict()
        self._num_characters = 0

    def get(self, language: Language) -> FromCompiler | None:
        entry = self._entries.get(language)
        if entry is None:
            return None
        self._entries.move_to_end(language)
        return entry[0]

    def put(self, language: Language, answer: FromCompiler) -> None:
        # Twice the grammar, as the language is about as long.
        size = 2 * len(answer.grammar) if isinstance(answer, Compiled) else _REFUSED_CHARACTERS
        if isinstance(answer, Prepared) or language in self._entries or size > self._max_characters:
            return
        self._entries[language] = answer, size
        self._num_characters += size
        while self._num_characters > self._max_characters:
            _, (_, oldest_size) = self._entries.popitem(last=False)
            self._num_characters -= oldest_size


class GrammarCompiler:
    """For one model. One owner closes it; any task may compile."""

    def __init__(self, spec: ModelSpec, limits: CompileLimits) -> None:
        self._limits = limits
        prepare = Prepare(
            tokenizer_file=spec.tokenizer_file or "",
            eos_token_ids=spec.eos_token_ids,
            vocab_size=spec.decoder.vocab_size,
            cpu_limit_s=limits.cpu_limit_s,
            time_limit_s=limits.time_limit_s,
            memory_limit_bytes=limits.memory_limit_bytes,
        )
        kind: HelperKind[ToCompiler, FromCompiler] = HelperKind(
            module="pagewire.scheduler_svc.frontend.text.grammar_process",
            work="constraints wait to be compiled",
            prepare=prepare,
            to_helper=Codec(ToCompiler),
            from_helper=Codec(FromCompiler),
        )
        self._answers = _Answers(limits.max_remembered_characters)
        self._compilers = HelperPool(
            kind,
            PoolLimits(
                answer_limit_s=limits.time_limit_s + _KILL_GRACE_S,
                max_processes=limits.max_processes,
                max_waiting=limits.max_waiting,
            ),
        )

    def start_soon(self) -> None:
        """Have the first process started while its owner does something else."""
        self._compilers.start_soon()

    async def close(self) -> None:
        """End every process; work under way is given up."""
        await self._compilers.close()

    async def compile(self, language: Language, client: str) -> str:
        """The grammar; clients that wait have their turns one after the other. Raises LanguageRefusedError,
        ResourceExhausted if too many wait."""
        answer = self._answers.get(language)
        if answer is None:
            try:
                answer = await self._compilers.ask(Compile(language), client)
            except HelperEndedError as error:
                limits = self._limits
                raise LanguageRefusedError(
                    f"took more than {limits.cpu_limit_s:g} s of a processor, {limits.time_limit_s:g} s in all or "
                    f"{limits.memory_limit_bytes} bytes of memory to compile"
                ) from error
            self._answers.put(language, answer)
        match answer:
            case Compiled():
                return answer.grammar
            case Refused():
                raise LanguageRefusedError(answer.message)
            case Prepared():
                raise LanguageRefusedError("the compiler lost its place")
