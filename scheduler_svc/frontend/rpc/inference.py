"""InferenceService: generations as messages of the contract, and the tokenizer's two directions.

`Generate` and `StreamGenerate` are one path; the first collects what the second sends.
"""

from typing import Any

import grpc

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import MAX_DETOKENIZED_IDS, check_model, check_token_ids
from pagewire.scheduler_svc.frontend.request.prompt import validate_prompt
from pagewire.scheduler_svc.frontend.rpc.generations import GenerationParts, Generations
from pagewire.scheduler_svc.frontend.rpc.message_fields import refuse_unknown_fields
from pagewire.scheduler_svc.frontend.rpc.whole_answer import whole_answer
from pagewire.v1 import generation_pb2 as generation_pb
from pagewire.v1 import inference_pb2 as pb
from pagewire.v1 import inference_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Serves pagewire.v1.InferenceService."""

    def __init__(self, generations: Generations, parts: GenerationParts) -> None:
        self._generations = generations
        self._parts = parts

    async def StreamGenerate(  # type: ignore[override]  # the stubs know generators alone
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> None:
        """Writes messages instead of yielding them: one coroutine less between a token and its client."""
        streaming = self._generations.stream(request, context, context.write)
        del request  # it would stay for as long as the stream does
        await streaming

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """The messages of the same stream, joined."""
        want_text = self._wants_text(request.generation)
        collecting = self._generations.collect(request, context)
        del request  # as above
        messages, stream = await collecting
        return whole_answer(messages, len(stream.outputs), want_text=want_text, has_parts=stream.has_parts)

    def _wants_text(self, generation: generation_pb.Generation) -> bool:
        return generation.output.text if generation.output.HasField("text") else self._parts.tokenizer is not None

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Turns a prompt into the ids that Generate would use."""
        with self._parts.request_bytes.hold(self._generations.tenant(context), request.ByteSize()):
            refuse_unknown_fields(request)
            model = self._parts.model
            check_model(request.model, model.spec)
            if request.HasField("add_special_tokens") and request.prompt.WhichOneof("kind") != "text":
                raise InvalidArgument("add_special_tokens", "is set; it applies to a prompt of text alone")
            prompt, path = validate_prompt(request.prompt, "prompt", model.spec, model.limits)
            add_special_tokens = request.add_special_tokens if request.HasField("add_special_tokens") else True
            del request
            client = self._generations.client(context)
            read = await self._parts.prompts.read(
                prompt, path, model.limits, client, add_special_tokens=add_special_tokens
            )
        return pb.TokenizeResponse(ids=read.ids, text=read.text)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        """Turns ids into a text of their own."""
        refuse_unknown_fields(request)
        model, tokenizer = self._parts.model, self._parts.tokenizer
        check_model(request.model, model.spec)
        if tokenizer is None:
            raise InvalidArgument("ids", f"cannot become text: model {model.spec.name} has no tokenizer")
        if len(request.ids) > MAX_DETOKENIZED_IDS:
            raise InvalidArgument("ids", f"has {len(request.ids)} ids; at most {MAX_DETOKENIZED_IDS} may be")
        ids = list(request.ids)
        check_token_ids(ids, "ids", model.limits.vocab_size)
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        text = await tokenizer.decode(ids, skip_special_tokens=skip, client=self._generations.client(context))
        return pb.DetokenizeResponse(text=text)
