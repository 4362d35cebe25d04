"""Log-probabilities of rows of logits: the whole vocabulary's softmax, before temperature, top-k and top-p."""

import torch

from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.kernels.workspaces import LogprobsWorkspace


def logprobs(
    logits_LV: torch.Tensor,
    rows_S: torch.Tensor,
    tokens_S: torch.Tensor,
    named_SM: torch.Tensor,
    out_chosen_S: torch.Tensor,
    out_named_SM: torch.Tensor,
    out_top_ids_SN: torch.Tensor,
    out_top_SN: torch.Tensor,
    *,
    workspace: LogprobsWorkspace,
) -> None:
    """Of the rows picked: a token's log-probability, those of M named ids, and the N likeliest ids with theirs,
    likeliest first; the lower id first among equals.

    logits_LV            float32 or bfloat16, rows contiguous
    rows_S               int32: the rows of logits that are looked at
    tokens_S             int32 or int64; NO_TOKEN's log-probability is NaN
    named_SM             int32; the same for NO_TOKEN
    out_chosen_S         float32
    out_named_SM         float32
    out_top_ids_SN       int32, N from 0 to MAX_TOP_LOGPROBS; NO_TOKEN past the last id that has a probability
    out_top_SN           float32; minus infinity past that id

    Of a row that is no distribution every number is NaN and every id NO_TOKEN.
    """
    workspace.check(
        logits_LV,
        rows_S,
        tokens=tokens_S,
        named=named_SM,
        out_chosen=out_chosen_S,
        out_named=out_named_SM,
        out_top_ids=out_top_ids_SN,
        out_top=out_top_SN,
    )
    logits_SV = logits_LV[rows_S.to(torch.int64)].float()
    is_sound_S = logits_SV.amax(1).isfinite()
    logprobs_SV = torch.where(is_sound_S[:, None], logits_SV, torch.nan).log_softmax(1)
    for ids_SM, out_SM in ((tokens_S[:, None], out_chosen_S[:, None]), (named_SM, out_named_SM)):
        values_SM = logprobs_SV.gather(1, ids_SM.to(torch.int64).clamp(min=0))
        out_SM.copy_(torch.where(ids_SM < 0, torch.nan, values_SM))
    num_top = min(out_top_ids_SN.shape[1], logits_SV.shape[1])
    ids_SN = logits_SV.sort(dim=1, descending=True, stable=True).indices[:, :num_top]
    top_SN = logprobs_SV.gather(1, ids_SN)
    out_top_ids_SN.fill_(NO_TOKEN)
    out_top_ids_SN[:, :num_top] = torch.where(top_SN.isfinite(), ids_SN, NO_TOKEN)
    out_top_SN.copy_(torch.where(is_sound_S[:, None], -torch.inf, torch.nan).expand_as(out_top_SN))
    out_top_SN[:, :num_top] = top_SN
