"""Log-probabilities of the model's distribution, before temperature, top-k and top-p."""

import torch

from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.kernels.workspaces import LogprobsWorkspace


def logprobs(
    logits_SV: torch.Tensor,
    tokens_S: torch.Tensor,
    out_logprob_S: torch.Tensor,
    out_top_ids_SN: torch.Tensor,
    out_top_logprobs_SN: torch.Tensor,
    *,
    workspace: LogprobsWorkspace,
) -> None:
    """The sampled token's log-probability, and the N likeliest ids with theirs, likeliest first; the lower id first
    among equals.

    logits_SV            float32 or bfloat16, rows contiguous
    tokens_S             int32 or int64; NO_TOKEN's log-probability is NaN
    out_logprob_S        float32
    out_top_ids_SN       int32, N from 0 to MAX_TOP_LOGPROBS; NO_TOKEN past the vocabulary's end
    out_top_logprobs_SN  float32; minus infinity past the vocabulary's end

    Of a row that is no distribution every number is NaN and every id NO_TOKEN.
    """
    workspace.check(
        logits_SV,
        tokens=tokens_S,
        out_logprob=out_logprob_S,
        out_top_ids=out_top_ids_SN,
        out_top_logprobs=out_top_logprobs_SN,
    )
    logits_SV = logits_SV.float()
    is_sound_S = logits_SV.amax(1).isfinite()
    logprobs_SV = torch.where(is_sound_S[:, None], logits_SV, torch.nan).log_softmax(1)
    chosen_S = logprobs_SV.gather(1, tokens_S.to(torch.int64).clamp(min=0)[:, None])[:, 0]
    out_logprob_S.copy_(torch.where(tokens_S < 0, torch.nan, chosen_S))
    num_top = min(out_top_ids_SN.shape[1], logits_SV.shape[1])
    ids_SN = logits_SV.sort(dim=1, descending=True, stable=True).indices[:, :num_top]
    out_top_ids_SN.fill_(NO_TOKEN)
    out_top_ids_SN[:, :num_top] = torch.where(is_sound_S[:, None], ids_SN, NO_TOKEN)
    out_top_logprobs_SN.copy_(torch.where(is_sound_S[:, None], -torch.inf, torch.nan).expand_as(out_top_logprobs_SN))
    out_top_logprobs_SN[:, :num_top] = logprobs_SV.gather(1, ids_SN)
