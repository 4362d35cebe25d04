"""Constraints: from `pagewire.v1.Constraint` to a language, checked against the contract's limits but not compiled.

What the texts mean is asked in another process (`text.grammar_compiler`), because this is done on the event loop that
every stream of the process shares.
"""

from collections.abc import Sequence

import numpy as np

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import (
    MAX_CHOICES,
    MAX_CONSTRAINT_BYTES,
    MAX_CONSTRAINT_NESTING,
    MAX_STRUCTURAL_TAGS,
    ModelLimits,
    quote,
)
from pagewire.scheduler_svc.frontend.text.grammar_compiler import GrammarCompiler, LanguageRefusedError
from pagewire.scheduler_svc.frontend.text.languages import (
    Answer,
    Choice,
    Content,
    Grammar,
    JsonObject,
    JsonSchema,
    Language,
    Part,
    Regex,
    StructuralTags,
    Tag,
)
from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.model import ModelSpec

_PATH = "generation.constraint"
_PIECE_BYTES = 8192
_STEPS = np.zeros(256, np.int8)
"""What each byte adds to the number of open brackets."""
_STEPS[list(b"([{")], _STEPS[list(b")]}")] = 1, -1
_KINDS: dict[type[Content], str] = {
    JsonSchema: "json_schema",
    JsonObject: "json_object",
    Regex: "regex",
    Grammar: "grammar",
    Choice: "choice",
    StructuralTags: "structural_tags",
}


def constraint_language(generation: pb.Generation, spec: ModelSpec, limits: ModelLimits) -> Content | None:
    """What the output is constrained to; none where it is not. Raises InvalidArgument."""
    if not generation.HasField("constraint"):
        return None
    constraint = generation.constraint
    kind = constraint.WhichOneof("kind")
    if kind is None:
        kinds = ", ".join(field.name for field in constraint.DESCRIPTOR.oneofs_by_name["kind"].fields)
        raise InvalidArgument(_PATH, f"says no kind; it needs one of {kinds}")
    check_can_constrain(generation, spec, limits, _PATH)
    if (size := constraint.ByteSize()) > MAX_CONSTRAINT_BYTES:
        raise InvalidArgument(f"{_PATH}.{kind}", f"has {size} bytes; at most {MAX_CONSTRAINT_BYTES} may be")
    match kind:
        case "choice":
            return Choice(_choices(constraint.choice.texts))
        case "structural_tags":
            return _tags(constraint.structural_tags)
        case _:
            return _part(constraint, kind, f"{_PATH}.{kind}")


def check_can_constrain(generation: pb.Generation, spec: ModelSpec, limits: ModelLimits, path: str) -> None:
    """Raise InvalidArgument where no output can be held to a language; `path` asks for it."""
    if limits.no_logits is not None:
        raise InvalidArgument(path, limits.no_logits)
    if spec.tokenizer_file is None:
        raise InvalidArgument(path, f"is set; model {spec.name} has no tokenizer")
    if not spec.eos_token_ids:
        raise InvalidArgument(path, f"is set; model {spec.name} has no end-of-sequence token to end it with")
    if generation.stopping.ignore_eos:
        raise InvalidArgument(
            "generation.stopping.ignore_eos", "is true; a constrained output ends where its language does"
        )


def _part(holder: pb.Constraint | pb.StructuralTag, kind: str, path: str) -> Part:
    if kind == "json_object":
        return JsonObject()
    text: str = getattr(holder, kind)
    if not text and kind != "regex":  # which matches the empty output
        raise InvalidArgument(path, f"is empty, which is no {kind.replace('_', ' ')}")
    check_nesting(text, path)
    match kind:
        case "json_schema":
            return JsonSchema(text)
        case "regex":
            return Regex(text)
        case _:
            return Grammar(text)


def check_nesting(text: str, path: str) -> None:
    """Raise InvalidArgument for too many brackets open at once, wherever they stand: at most a fifth of a millisecond,
    where finding it out by compiling takes a thousand times as long."""
    if len(text) <= MAX_CONSTRAINT_NESTING:
        return
    characters = np.frombuffer(text.encode(), np.uint8)
    depth = 0
    # In pieces, because what nests too deep most often begins with it.
    for begin in range(0, len(characters), _PIECE_BYTES):
        depths = depth + _STEPS[characters[begin : begin + _PIECE_BYTES]].cumsum(dtype=np.int32)
        if depths.max() > MAX_CONSTRAINT_NESTING:
            raise InvalidArgument(path, f"nests more than {MAX_CONSTRAINT_NESTING} brackets deep")
        depth = int(depths[-1])


def _choices(texts: Sequence[str]) -> tuple[str, ...]:
    path = f"{_PATH}.choice.texts"
    if not 1 <= len(texts) <= MAX_CHOICES:
        raise InvalidArgument(path, f"has {len(texts)} texts; 1 to {MAX_CHOICES} may be")
    for index, text in enumerate(texts):
        if not text:
            raise InvalidArgument(f"{path}[{index}]", "is empty; a choice has at least one character")
    return tuple(texts)


def _tags(tags: pb.StructuralTags) -> StructuralTags:
    path = f"{_PATH}.structural_tags"
    for name, entries, least in (("tags", tags.tags, 1), ("triggers", tags.triggers, 0)):
        if not least <= len(entries) <= MAX_STRUCTURAL_TAGS:
            raise InvalidArgument(
                f"{path}.{name}", f"has {len(entries)} entries; {least} to {MAX_STRUCTURAL_TAGS} may be"
            )
    for index, trigger in enumerate(tags.triggers):
        if not trigger:
            raise InvalidArgument(f"{path}.triggers[{index}]", "is empty; a trigger has at least one character")
    return StructuralTags(tuple(_tag(tag, index, list(tags.triggers), path) for index, tag in enumerate(tags.tags)))


def _tag(tag: pb.StructuralTag, index: int, triggers: list[str], path: str) -> Tag:
    path = f"{path}.tags[{index}]"
    if not tag.begin:
        raise InvalidArgument(f"{path}.begin", "is empty; a tag begins with at least one character")
    trigger = tag.begin
    if triggers:
        fitting = [each for each in triggers if tag.begin.startswith(each)]
        if not fitting:
            raise InvalidArgument(f"{path}.begin", f"is {quote(tag.begin)}, which begins with none of the triggers")
        trigger = min(fitting, key=len)
    kind = tag.WhichOneof("content")
    if kind is None:
        raise InvalidArgument(path, "has no content; it needs one of json_schema, regex, grammar and json_object")
    return Tag(trigger, tag.begin, _part(tag, kind, f"{path}.{kind}"), tag.end)


async def compiled(language: Language, compiler: GrammarCompiler | None, client: str) -> str:
    """The language as a grammar; `client` is whom the work is done for. Raises InvalidArgument, ResourceExhausted."""
    path = "generation.prompt.chat" if isinstance(language, Answer) else f"{_PATH}.{_KINDS[type(language)]}"
    if compiler is None:
        raise InvalidArgument(path, "is not supported by this server")
    try:
        return await compiler.compile(language, client)
    except LanguageRefusedError as error:
        if isinstance(language, Answer) and language.content is not None:
            await compiled(language.content, compiler, client)  # where that is what is wrong, it says so itself
        raise InvalidArgument(path, str(error)) from error
