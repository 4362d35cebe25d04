"""Client library: the Python client, its command line, and everything that uses the service through gRPC.

    from pagewire.client import Client

    with Client("127.0.0.1:50051") as client:
        for piece in client.stream("The capital of France is", max_tokens=8).text:
            print(piece, end="")

`local()` starts a service on this machine for the length of a `with`. Nothing here imports torch, numpy or ZeroMQ.
"""

from pagewire.client.aio import AsyncClient
from pagewire.client.aio_stream import AsyncStream
from pagewire.client.errors import (
    BatchError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    LaunchError,
    NotFound,
    Overloaded,
    PagewireError,
    PermissionDenied,
    ProtocolError,
    ServerError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from pagewire.client.local import local, local_async
from pagewire.client.prompts import Chat, ChatFormat, Message, NamedTool, Parameters, Tag, Tool, ToolCall
from pagewire.client.retry import NO_RETRY, RetryPolicy
from pagewire.client.sync import Client
from pagewire.client.sync_stream import Stream
from pagewire.client.transport import Tls
from pagewire.client.types import (
    Candidate,
    Completion,
    ContentPart,
    Delta,
    Event,
    Finished,
    FinishReason,
    HealthStatus,
    MalformedCall,
    Model,
    Part,
    PromptTokens,
    ReasoningPart,
    Result,
    Started,
    Timings,
    Token,
    Tokenized,
    ToolCallPart,
    Usage,
)

__all__ = [
    "NO_RETRY",
    "AsyncClient",
    "AsyncStream",
    "BatchError",
    "Cancelled",
    "Candidate",
    "Chat",
    "ChatFormat",
    "Client",
    "Completion",
    "ContentPart",
    "DeadlineExceeded",
    "Delta",
    "Event",
    "FinishReason",
    "Finished",
    "HealthStatus",
    "InvalidRequest",
    "LaunchError",
    "MalformedCall",
    "Message",
    "Model",
    "NamedTool",
    "NotFound",
    "Overloaded",
    "PagewireError",
    "Parameters",
    "Part",
    "PermissionDenied",
    "PromptTokens",
    "ProtocolError",
    "ReasoningPart",
    "Result",
    "RetryPolicy",
    "ServerError",
    "Started",
    "Stream",
    "Tag",
    "Timings",
    "Tls",
    "Token",
    "Tokenized",
    "TooLarge",
    "Tool",
    "ToolCall",
    "ToolCallPart",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "local",
    "local_async",
]
