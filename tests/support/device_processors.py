"""A device's logit processors and its sampler, over sequences that were just admitted."""

from collections.abc import Sequence

import torch
from support.host_device import CPU

from pagewire.wire.columns import ID_BYTES, row_of, words_of
from pagewire.wire.plan import Admit
from pagewire.worker.cuda.slot_state import SlotLayout
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.controls import ControlLayout
from pagewire.worker.kernels.workspaces import ChangedRows, SamplingWorkspace


def processed(
    kernels: Kernels,
    logits_SV: torch.Tensor,
    admits: Sequence[Admit],
    device: torch.device = CPU,
    masks_SW: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """By a device's kernels, each row of logits that of the sequence just admitted: the values [S, V], and what is
    sampled of them. The slots are in another order than the rows; the logits are one row of two."""
    num_rows, vocab_size = logits_SV.shape
    slots_S = list(reversed(range(num_rows)))
    layout = ControlLayout(vocab_size, 64)
    rows = ChangedRows.allocate(num_rows, num_rows, layout, device)
    rows.marks_CV.fill_(-1)
    rows.masks_CW.copy_(torch.zeros(()) if masks_SW is None else masks_SW)
    slots = SlotLayout(num_rows, 1).allocate(device)
    changed = []
    for index, (slot, admit) in enumerate(zip(slots_S, admits, strict=True)):
        control = torch.from_numpy(layout.row_of(admit))
        rows.control_RW[slot, : len(control)].copy_(control)
        rows.control_RW[slot, len(control) :] = -9  # what an earlier holder has left behind
        slots.sampling_RP[slot].copy_(torch.from_numpy(words_of(row_of(admit.sampling)[None])[0].copy()))
        changed.append((2 * index, slot, len(admit.tokens) // ID_BYTES))
    spread_SV = torch.full((2 * num_rows, vocab_size), torch.nan)
    spread_SV[::2] = logits_SV
    changed_CF = torch.tensor(changed, dtype=torch.int32, device=device)
    kernels.process(spread_SV.to(device), changed_CF, slots, rows, has_masks=masks_SW is not None)
    tokens_C = torch.full((num_rows,), -9, dtype=torch.int32, device=device)
    kernels.sample(
        rows.logits_CV,
        slots.sampling_RP[changed_CF[:, 1].long()],
        changed_CF[:, 2].long(),
        tokens_C,
        workspace=SamplingWorkspace.allocate(num_rows, vocab_size, device),
    )
    tokens_S = torch.full((2 * num_rows,), -7, dtype=torch.int32, device=device)
    kernels.finish_changed(changed_CF, tokens_C, tokens_S, slots, rows)
    going_on = tokens_C.clamp(min=0)
    assert torch.equal(tokens_S[::2], tokens_C)
    assert (tokens_S[1::2] == -7).all()
    assert torch.equal(slots.last_token_R[slots_S], going_on)
    assert torch.equal(rows.control_RW[slots_S, layout.ids + changed_CF[:, 2].long()], going_on)
    return rows.logits_CV.cpu(), tokens_C.cpu()
