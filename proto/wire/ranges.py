"""Ranges of the numbers and texts on the private wire, said in the types: a decoder refuses a message with any other.

They are what every reader can hold, in its int32 columns and in the public contract's fields, not what makes sense; a
reader checks that itself. Fields that a refusal must be able to name the message for have none of them: `Submit`.
"""

from typing import Annotated

from msgspec import Meta

Handle = Annotated[int, Meta(ge=0, lt=2**31)]
Count = Annotated[int, Meta(ge=0, lt=2**31)]
PeerNumber = Annotated[int, Meta(ge=0, lt=1024)]
"""Of a frontend, or a rank."""
Incarnation = Annotated[int, Meta(ge=0, lt=2**31)]
Total = Annotated[int, Meta(ge=0, lt=2**53)]
"""A counter, microseconds, or bytes; the sum over ranks is one too."""
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
"""Finite, and a number."""
ShortText = Annotated[str, Meta(max_length=1024)]
"""A name or a version."""
ShortTexts = Annotated[dict[ShortText, ShortText], Meta(max_length=256)]
HandleColumn = Annotated[bytes, Meta(max_length=4 * 65_536)]
"""int32 column of handles that stand there once each."""
