"""A sequence's history: which ids it has, and how often each was generated, kept up token by token.

What penalties need to know. A step reads the distinct ids alone, so it costs what these are many, not what the sequence
is long. Nothing here outlives its slot: it is made again from the ids that an admission brings.
"""

from array import array

import numpy as np

from pagewire.wire.columns import Int32Array


class History:
    """Follows one sequence. Memory in proportion to the vocabulary: 5 bytes an id."""

    def __init__(self, prompt_len: int, vocab_size: int) -> None:
        self._prompt_len = prompt_len
        self._num_read = 0
        self._is_known = np.zeros(vocab_size, np.bool_)
        self._counts = np.zeros(vocab_size, np.int32)
        self._known = array("i")
        self._generated = array("i")

    def read(self, ids: Int32Array) -> None:
        """`ids` is the whole sequence so far; what was not read before is added."""
        if self._num_read < self._prompt_len:
            new = np.unique(ids[self._num_read : self._prompt_len])
            self._is_known[new] = True
            self._known.frombytes(new.tobytes())
            self._num_read = self._prompt_len
        for token in ids[self._num_read :].tolist():
            if not self._is_known[token]:
                self._is_known[token] = True
                self._known.append(token)
            if not self._counts[token]:
                self._generated.append(token)
            self._counts[token] += 1
        self._num_read = len(ids)

    @property
    def known(self) -> Int32Array:
        """Each id of prompt and output once. Valid until the next `read`."""
        return np.array(self._known, np.int32)

    @property
    def generated(self) -> tuple[Int32Array, Int32Array]:
        """Each id of the output once, and how often it stands there."""
        ids = np.array(self._generated, np.int32)
        return ids, self._counts[ids]
