"""Step state, resident on the device, in plain torch: what `pagewire.worker.kernels.triton.step_state` computes, as its
definition.

Same names, signatures and results on every device; meant for tests and for a machine without Triton, not for speed: it
reads lengths back to the host.
"""

import torch

from pagewire.worker.kernels.contract import SlotTensors, StepTensors


def apply_changes(slots: SlotTensors, indices_C: torch.Tensor, values_C: torch.Tensor) -> None:
    """Writes int32 words of the slots' arena. Indices are int32 and differ from each other."""
    slots.arena.index_put_((indices_C,), values_C)


def prepare_step(
    slots: SlotTensors, seqs_BQ: torch.Tensor, ids_C: torch.Tensor, step: StepTensors, *, block_size: int, max_rows: int
) -> None:
    """Fills `step` for the sequences described by seqs_BQ (int32; see `pagewire.worker.kernels.contract`); `ids_C`
    are the plan's token ids, int32. No sequence has more than `max_rows` rows. Slots are only read."""
    step.query_starts[0] = 0
    for index, (slot, first_row, num_rows, first_id, sample) in enumerate(seqs_BQ.tolist()):
        rows = slice(first_row, first_row + num_rows)
        is_padding = slot < 0
        start = 0 if is_padding else int(slots.length_R[slot])
        context_len = 0 if is_padding else start + num_rows
        positions = torch.arange(start, start + num_rows, device=step.positions_T.device)
        step.positions_T[rows] = positions
        step.query_starts[index + 1] = first_row + num_rows
        step.context_lens_B[index] = context_len
        if is_padding:
            step.input_ids_T[rows] = 0
            step.kv_positions_T[rows] = -1
            step.block_tables_BM[index] = 0
        else:
            step.input_ids_T[rows] = (
                slots.last_token_R[slot] if first_id < 0 else ids_C[first_id : first_id + num_rows].to(torch.int64)
            )
            table_M = slots.block_tables_RM[slot]
            blocks = table_M[positions // block_size].to(torch.int64)
            is_written = positions >= slots.cached_len_R[slot]
            step.kv_positions_T[rows] = torch.where(is_written, blocks * block_size + positions % block_size, -1)
            num_blocks = -(-context_len // block_size)
            step.block_tables_BM[index, :num_blocks] = table_M[:num_blocks]
            step.block_tables_BM[index, num_blocks:] = 0
        if sample >= 0:
            step.sample_rows_S[sample] = first_row + num_rows - 1
            step.sample_positions_S[sample] = context_len
            step.sampling_SP[sample] = 0 if is_padding else slots.sampling_RP[slot]


def finish_step(slots: SlotTensors, seqs_BQ: torch.Tensor, tokens_S: torch.Tensor) -> None:
    """After sampling: every sequence is as much longer as it had rows, and what it sampled (int32) is its last token.
    A row that could not sample (a negative token) goes on with id 0."""
    for slot, _, num_rows, _, sample in seqs_BQ.tolist():
        if slot < 0:
            continue
        slots.length_R[slot] += num_rows
        if sample >= 0:
            slots.last_token_R[slot] = tokens_S[sample].clamp(min=0)
