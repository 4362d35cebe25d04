"""Plots of results, with matplotlib, which is an extra of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pagewire.client.bench.runs import Outcome
from pagewire.client.bench.summary import Reading, percentile
from pagewire.client.errors import InvalidRequest

_POINTS = 400


def check() -> None:
    """Raises InvalidRequest where matplotlib is not installed; call it before measuring."""
    _matplotlib()


def outcomes(path: str, title: str, found: Sequence[Outcome]) -> None:
    """Latency distributions; of several loads also throughput and latency against load."""
    several = len(found) > 1
    figure, axes = _figure(2 if several else 1)
    for name, axis in zip(("ttft", "itl", "e2e"), axes[0], strict=True):
        for outcome in found:
            _distribution(axis, _samples(name, outcome.readings), outcome.label)
        axis.set_xlabel(f"{name} (ms)")
        axis.set_ylabel("share of samples")
    axes[0][0].legend()
    if several:
        labels = [outcome.label for outcome in found]
        for axis, what, of in (
            (axes[1][0], "output tokens/s", [outcome.summary.output_tokens_per_s for outcome in found]),
            (axes[1][1], "ttft p50 (ms)", [outcome.summary.ttft_ms.p50 for outcome in found]),
            (axes[1][2], "itl p99 (ms)", [outcome.summary.itl_ms.p99 for outcome in found]),
        ):
            axis.plot(labels, of, marker="o")
            axis.set_ylabel(what)
            axis.set_ylim(bottom=0)
    _save(figure, path, title)


def distributions(path: str, title: str, unit: str, samples: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Several distributions over each other."""
    figure, axes = _figure(1, columns=1)
    for label, values in samples:
        _distribution(axes[0][0], values, label)
    axes[0][0].set_xlabel(unit)
    axes[0][0].set_ylabel("share of samples")
    axes[0][0].legend()
    _save(figure, path, title)


def _samples(name: str, readings: Sequence[Reading]) -> list[float]:
    match name:
        case "ttft":
            return [reading.ttft_ms for reading in readings if reading.ttft_ms is not None]
        case "itl":
            return [(end - start) * 1000 for reading in readings for start, end in reading.gaps()]
        case _:
            return [reading.e2e_ms for reading in readings if reading.e2e_ms is not None]


def _distribution(axis: Any, samples: Sequence[float], label: str) -> None:
    """The cumulative share, drawn at so many points that the picture stays small."""
    ordered = sorted(samples)
    if ordered:
        percents = [100 * point / _POINTS for point in range(_POINTS + 1)]
        axis.plot([percentile(ordered, percent) for percent in percents], [p / 100 for p in percents], label=label)
        axis.grid(visible=True, alpha=0.3)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise InvalidRequest("--plot needs matplotlib: pip install 'pagewire[plot]'", field="--plot") from error
    return matplotlib


def _figure(rows: int, columns: int = 3) -> Any:
    """(figure, axes in rows)"""
    _matplotlib().use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, squeeze=False, figsize=(5 * columns, 3.8 * rows), layout="constrained")


def _save(figure: Any, path: str, title: str) -> None:
    figure.suptitle(title, fontsize="small", wrap=True)
    try:
        figure.savefig(Path(path), format="png")
    except OSError as error:
        raise InvalidRequest(f"--plot {path!r} cannot be written: {error.strerror}", field="--plot") from error
