"""vLLM's names: the metrics that dashboards and endpoint pickers made for vLLM read, beside our own.

What has no meaning here is not there. Times are those that our own metrics of the same meaning have; buckets are ours.
"""

from collections.abc import Callable, Mapping

from pagewire.scheduler_svc.metrics.families import Family, Kind, Value, utilization
from pagewire.scheduler_svc.metrics.totals import Snapshot

_FINISHED = {
    "eos": "stop",
    "stop_string": "stop",
    "stop_token": "stop",
    "length": "length",
    "aborted": "abort",
}
"""vLLM's reason for each of ours."""
_READ = Callable[[Snapshot], Value | Mapping[str, Value] | None]


def vllm_families(model_name: str) -> list[Family]:
    """For a server of this model, which is one engine to them."""
    constant = {"model_name": model_name, "engine": "0"}

    def family(name: str, kind: Kind, text: str, read: _READ, label: str = "") -> Family:
        return Family(f"vllm:{name}", kind, text, read, label, constant)

    return [
        family("num_requests_running", "gauge", "Sequences that have a slot",
               lambda now: None if now.gauges is None else now.gauges.running),
        family("num_requests_waiting", "gauge", "Sequences that wait for a slot",
               lambda now: None if now.gauges is None else now.gauges.waiting),
        family("kv_cache_usage_perc", "gauge", "KV blocks that sequences hold, of all: 0 to 1",
               lambda now: None if now.gauges is None else utilization(now.gauges)),
        Family("vllm:cache_config", "info", "The KV cache", _cache_config, constant=constant),
        family("prefix_cache_queries", "counter", "Prompt tokens looked up in the prefix cache",
               lambda now: now.engine.prompt_tokens),
        family("prefix_cache_hits", "counter", "Prompt tokens found there",
               lambda now: now.engine.cached_prompt_tokens),
        family("num_preemptions", "counter", "Sequences that are computed again", lambda now: now.engine.preemptions),
        family("prompt_tokens", "counter", "Tokens of prompts that began to run",
               lambda now: now.engine.prompt_tokens),
        family("generation_tokens", "counter", "Tokens that were generated", lambda now: now.engine.output_tokens),
        family("request_success", "counter", "Outputs, by what ended them", _finished, "finished_reason"),
        family("iteration_tokens_total", "histogram", "Tokens computed in a step",
               lambda now: now.engine.step_tokens),
        family("time_to_first_token_seconds", "histogram", "From a call's arrival to its first token",
               lambda now: now.frontends.time_to_first_token),
        family("inter_token_latency_seconds", "histogram", "Between two tokens of an output",
               lambda now: now.frontends.inter_token),
        family("e2e_request_latency_seconds", "histogram", "From a call's arrival to its end",
               lambda now: now.frontends.request),
        family("request_queue_time_seconds", "histogram", "Until a request's first step",
               lambda now: now.frontends.queue),
        family("request_prefill_time_seconds", "histogram", "From there to its first token",
               lambda now: now.frontends.prefill),
        family("request_decode_time_seconds", "histogram", "From there to its last token",
               lambda now: now.frontends.decode),
        family("request_prompt_tokens", "histogram", "Length of a prompt", lambda now: now.frontends.prompt_tokens),
        family("request_generation_tokens", "histogram", "Tokens of all outputs of a request",
               lambda now: now.frontends.output_tokens),
        family("request_params_max_tokens", "histogram", "Most tokens that an output may have",
               lambda now: now.frontends.max_tokens),
        family("request_params_n", "histogram", "Outputs of a request", lambda now: now.frontends.outputs_asked),
    ]  # fmt: skip


def _cache_config(now: Snapshot) -> Mapping[str, str] | None:
    if now.gauges is None:
        return None
    return {"block_size": str(now.gauges.block_size), "num_gpu_blocks": str(now.gauges.total_blocks)}


def _finished(now: Snapshot) -> Mapping[str, float]:
    counts = dict.fromkeys(("stop", "length", "abort"), 0.0)
    for reason, count in now.frontends.outputs.items():
        counts[_FINISHED[reason]] += count
    return counts
