"""int8 linears by plain arithmetic: whole numbers multiplied exactly, in fp64."""

import torch

ROTATION = 64


def hadamard() -> torch.Tensor:
    """[64, 64] of 1 and -1."""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < ROTATION:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


def reference_int8(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """[T, in], [out, in], [out] → [T, out] in fp32."""
    rows, row_steps = _quantized(x)
    columns, column_steps = _quantized(weight)
    sums = rows.double() @ columns.double().T
    y = sums * row_steps.double() * column_steps.double().T / ROTATION
    return (y if bias is None else y + bias.double()).float()


def _quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    filled = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % ROTATION))
    # Butterflies from neighbours to halves: the order of its sums decides an fp32 value's last bit, and so a tie.
    values = filled.view(-1, ROTATION)
    half = 1
    while half < ROTATION:
        lanes = torch.arange(ROTATION)
        values = torch.where(lanes & half > 0, -values, values) + values[:, lanes ^ half]
        half *= 2
    torch.testing.assert_close(values, filled.view(-1, ROTATION) @ hadamard(), rtol=1e-4, atol=1e-4)
    values = values.view(filled.shape)
    largest = values.abs().amax(dim=1, keepdim=True)
    factor = torch.where(largest > 0, torch.full_like(largest, 127.0) / largest, 0.0)
    return (values * factor).round(), largest / 127
