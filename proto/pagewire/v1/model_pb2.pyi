from pagewire.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "architecture", "dtype", "limits", "capabilities", "tokenizer_digest", "weights_digest", "default_sampling", "eos_token_ids", "chat_format", "exact_continuation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SAMPLING_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    EXACT_CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    architecture: str
    dtype: str
    limits: Limits
    capabilities: Capabilities
    tokenizer_digest: str
    weights_digest: str
    default_sampling: DefaultSampling
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    chat_format: _generation_pb2.ChatFormat
    exact_continuation: bool
    def __init__(self, name: _Optional[str] = ..., architecture: _Optional[str] = ..., dtype: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., tokenizer_digest: _Optional[str] = ..., weights_digest: _Optional[str] = ..., default_sampling: _Optional[_Union[DefaultSampling, _Mapping]] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., chat_format: _Optional[_Union[_generation_pb2.ChatFormat, _Mapping]] = ..., exact_continuation: _Optional[bool] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_model_len", "vocab_size", "max_n", "max_queued", "max_stop_strings", "max_stop_string_bytes", "max_message_bytes", "max_kv_tokens", "max_logit_bias", "max_bad_words", "max_candidates", "max_logprob_token_ids")
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_N_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_FIELD_NUMBER: _ClassVar[int]
    MAX_STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_STOP_STRING_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MAX_BAD_WORDS_FIELD_NUMBER: _ClassVar[int]
    MAX_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGPROB_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    max_model_len: int
    vocab_size: int
    max_n: int
    max_queued: int
    max_stop_strings: int
    max_stop_string_bytes: int
    max_message_bytes: int
    max_kv_tokens: int
    max_logit_bias: int
    max_bad_words: int
    max_candidates: int
    max_logprob_token_ids: int
    def __init__(self, max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ..., max_n: _Optional[int] = ..., max_queued: _Optional[int] = ..., max_stop_strings: _Optional[int] = ..., max_stop_string_bytes: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_kv_tokens: _Optional[int] = ..., max_logit_bias: _Optional[int] = ..., max_bad_words: _Optional[int] = ..., max_candidates: _Optional[int] = ..., max_logprob_token_ids: _Optional[int] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("text", "chat", "logprobs", "constraints", "penalties", "reasoning", "tool_calls")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    PENALTIES_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    text: bool
    chat: bool
    logprobs: bool
    constraints: bool
    penalties: bool
    reasoning: bool
    tool_calls: bool
    def __init__(self, text: _Optional[bool] = ..., chat: _Optional[bool] = ..., logprobs: _Optional[bool] = ..., constraints: _Optional[bool] = ..., penalties: _Optional[bool] = ..., reasoning: _Optional[bool] = ..., tool_calls: _Optional[bool] = ...) -> None: ...

class DefaultSampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ...) -> None: ...
