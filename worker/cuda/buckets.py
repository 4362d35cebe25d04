"""The batch sizes that steps are recorded for."""


def padded_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, then multiples of eight, and last max_num_seqs itself; ascending. Up to eight a row costs what one
    does, and past it a step is padded by seven rows at most."""
    sizes = [size for size in (1, 2, 4) if size < max_num_seqs]
    sizes += range(8, max_num_seqs, 8)
    return [*sizes, max_num_seqs]


def padded_size(num_seqs: int, max_num_seqs: int) -> int:
    """The least recorded size that holds num_seqs, which is at least 1."""
    size = 1 << (num_seqs - 1).bit_length() if num_seqs <= 8 else -(-num_seqs // 8) * 8
    return min(size, max_num_seqs)
