"""The template process: Jinja in a sandbox, in a process with limits.

A template comes with the model and its arguments come with requests, so rendering is untrusted work. Jinja's sandbox
keeps it from the interpreter, not from the clock or the memory: a loop that prints nothing cannot be interrupted from
outside in Python, and a thread cannot be ended. Here the kernel ends the process when a rendering takes too long
(SIGALRM with its default action) or the memory limit is reached, and the frontend starts another one.

A text of JSON is read here too, for the same reasons.

The environment is the one that chat templates are written for (transformers, `chat_template_utils`): blocks trimmed,
`break` and `continue`, `raise_exception`, `strftime_now`, `tojson` without HTML escapes, and `{% generation %}`, which
marks what a model said and changes no text.
"""

import datetime
import json
import sys
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
import msgspec

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.text.helper_process import (
    Invalid,
    Prepared,
    Refused,
    limit_memory,
    limit_time,
    serve,
)
from pagewire.scheduler_svc.frontend.text.template_variables import TemplateForms, Variables
from pagewire.wire.codec import Codec


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """First frame to the process: the templates, and the limits of every rendering."""

    sources: dict[str, str]
    """By name."""
    time_limit_s: float
    memory_limit_bytes: int
    """Address space beyond what the process has when it starts."""
    max_output_bytes: int


class Render(msgspec.Struct, frozen=True, tag="render"):
    """Render once."""

    template: str
    """Its name."""
    variables: Variables


class Rendered(msgspec.Struct, frozen=True, tag="rendered"):
    """The text, and what was asked for besides."""

    text: str
    parameter_types: dict[str, dict[str, list[str]]] = {}
    """By tool and parameter."""


ToRenderer = Prepare | Render
FromRenderer = Prepared | Rendered | Refused | Invalid


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: its body, nothing else."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads it from the class)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Take the body as it stands."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


@dataclass(frozen=True, slots=True)
class CompiledTemplate:
    """A template, and what it says about the data that it expects."""

    template: jinja2.Template
    asks_for_none: bool
    """Whether it tests a message's content for none."""


def compile_template(source: str) -> CompiledTemplate:
    """Compile in the sandbox. Raises jinja2.TemplateError."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return CompiledTemplate(environment.from_string(source), _asks_for_none(environment.parse(source)))


def _asks_for_none(tree: jinja2.nodes.Template) -> bool:
    """`message.content is none`, `message['content'] != none`, and the same of a variable named for it."""
    tested = [test.node for test in tree.find_all(jinja2.nodes.Test) if test.name == "none"]
    for comparison in tree.find_all(jinja2.nodes.Compare):
        operands = [comparison.expr, *(operand.expr for operand in comparison.ops)]
        if any(isinstance(operand, jinja2.nodes.Const) and operand.value is None for operand in operands):
            tested += operands
    return any(_is_content(node) for node in tested)


def _is_content(node: jinja2.nodes.Node) -> bool:
    match node:
        case jinja2.nodes.Getattr():
            return node.attr == "content"
        case jinja2.nodes.Getitem():
            return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "content"
        case jinja2.nodes.Name():
            return "content" in node.name and "reasoning" not in node.name
        case _:
            return False


def render(compiled: CompiledTemplate, variables: Variables, max_output_bytes: int) -> Rendered | Refused | Invalid:
    """Render in the first form of the variables that the template takes; where it takes none, the first's refusal."""
    refusals: list[Refused] = []
    try:
        forms = TemplateForms(variables)
        types = forms.parameter_types() if variables.wants_parameter_types else {}
        for form in forms.forms(compiled.asks_for_none):
            try:
                return _render_form(compiled.template, form, max_output_bytes, types)
            except MemoryError:
                raise
            except Exception as error:  # whatever a template does is its request's fault, and ends nothing else
                message = str(error).encode(errors="replace").decode() or type(error).__name__
                refusals.append(Refused(f"the chat template refused these messages: {message[:500]}"))
    except InvalidArgument as error:
        return Invalid(error.field, error.problem)
    except MemoryError:
        return Refused("the chat template needed more memory than it may have")
    return refusals[0]


def _render_form(
    template: jinja2.Template, values: dict[str, Any], max_output_bytes: int, types: dict[str, dict[str, list[str]]]
) -> Rendered | Refused:
    """Piece by piece, so that an output over the limit is noticed before it is whole."""
    pieces: list[str] = []
    size = 0
    for piece in template.generate(values):
        size += len(piece.encode())
        if size > max_output_bytes:
            return Refused(f"the chat template's output is over the limit of {max_output_bytes} bytes")
        pieces.append(piece)
    return Rendered("".join(pieces), types)


class _Renderer:
    """What this process holds."""

    def __init__(self) -> None:
        self._templates: dict[str, CompiledTemplate] = {}
        self._limits = Prepare({}, 0, 0, 0)

    def answer(self, request: ToRenderer) -> FromRenderer:
        """Prepare or render."""
        match request:
            case Prepare():
                return self._prepare(request)
            case Render() if request.template in self._templates:
                limit_time(self._limits.time_limit_s)
                return render(self._templates[request.template], request.variables, self._limits.max_output_bytes)
            case _:
                sys.exit("template process: asked to render before it had a template")

    def _prepare(self, limits: Prepare) -> Prepared | Refused:
        self._limits = limits
        limit_memory(limits.memory_limit_bytes)
        limit_time(limits.time_limit_s)
        try:
            self._templates = {name: compile_template(source) for name, source in limits.sources.items()}
        except (jinja2.TemplateError, RecursionError, MemoryError) as error:
            return Refused(f"the chat template does not compile: {error}")
        return Prepared()


def main() -> None:
    """Serve until standard input ends."""
    incoming: Codec[ToRenderer] = Codec(ToRenderer)
    outgoing: Codec[FromRenderer] = Codec(FromRenderer)
    serve(incoming, outgoing, _Renderer().answer)


if __name__ == "__main__":
    main()
