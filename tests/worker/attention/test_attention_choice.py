"""Which attention a CUDA device gets, by its card, by what imports and by the model."""

from types import ModuleType

import pytest
import torch
from support.paged_world import Heads, attention_config
from support.worker_process import probe

from pagewire.wire.launch import AttentionBackendName
from pagewire.worker.attention.choice import (
    AttentionNeeds,
    AttentionUnavailable,
    CudaCard,
    attention_candidates,
    choose_attention,
)
from pagewire.worker.kernels.sets import reference_kernels

HOPPER = CudaCard(name="H200", capability=(9, 0), num_sms=132)
AMPERE = CudaCard(name="A100", capability=(8, 0), num_sms=108)
TURING = CudaCard(name="T4", capability=(7, 5), num_sms=40)


class Imports:
    """Modules that are installed, by name; anything else is not."""

    def __init__(self, *names: str, flash_2_version: str = "2.8.3", broken: str = "") -> None:
        self.asked: list[str] = []
        self._broken = broken
        self._modules = {name: ModuleType(name) for name in names}
        for name, module in self._modules.items():
            match name:
                case "flash_attn_interface":
                    module.__dict__.update(flash_attn_with_kvcache=None, get_scheduler_metadata=None)
                case "flash_attn":
                    module.__dict__.update(__version__=flash_2_version, flash_attn_varlen_func=None)
                case "triton":
                    module.__dict__.update(__version__="3.7.1")

    def __call__(self, name: str) -> ModuleType:
        self.asked.append(name)
        if name == self._broken:
            raise OSError("libcudart.so.12: cannot open shared object file")
        try:
            return self._modules[name]
        except KeyError:
            raise ModuleNotFoundError(f"No module named {name!r}") from None


ALL = ("flash_attn_interface", "flash_attn", "triton")


HEADS = Heads(4, 2, 128)


def needs(
    *, dtype: torch.dtype = torch.bfloat16, block_size: int | None = None, heads: Heads = HEADS
) -> AttentionNeeds:
    return AttentionNeeds(
        config=attention_config(heads),
        dtype=dtype,
        device=torch.device("cpu"),
        max_num_seqs=2,
        max_model_len=200,
        block_size=block_size,
        kernels=reference_kernels(),
    )


def chosen(
    card: CudaCard, imports: Imports, wanted: AttentionBackendName = "auto", asked: AttentionNeeds | None = None
) -> str:
    return choose_attention(attention_candidates(card, imports), wanted, asked or needs(), card).name


@pytest.mark.parametrize(
    ("card", "names", "name"),
    [
        (HOPPER, ALL, "flash-attention-3"),
        (HOPPER, ("flash_attn", "triton"), "flash-attention-2"),
        (AMPERE, ALL, "flash-attention-2"),
    ],
)
def test_the_best_that_imports(card: CudaCard, names: tuple[str, ...], name: str) -> None:
    assert chosen(card, Imports(*names)) == name


def reasons(card: CudaCard | None, imports: Imports) -> list[str]:
    return [candidate.missing for candidate in attention_candidates(card, imports)]


def test_why_a_rung_is_missing() -> None:
    imports = Imports(*ALL)
    assert reasons(None, imports) == ["no CUDA device"] * 3
    assert imports.asked == []
    assert reasons(TURING, imports) == [
        "T4 is not of the Hopper generation",
        *["T4 has compute capability 7.5; it takes 8.0 or more"] * 2,
    ]
    assert imports.asked == []
    assert reasons(HOPPER, Imports("flash_attn", flash_2_version="2.7.4.post1")) == [
        "flash_attn_interface does not import: No module named 'flash_attn_interface'",
        "flash_attn is 2.7.4.post1; it takes 2.8 or later",
        "triton does not import: No module named 'triton'",
    ]
    assert reasons(HOPPER, Imports(*ALL, broken="flash_attn"))[1] == (
        "flash_attn does not import: libcudart.so.12: cannot open shared object file"
    )
    old = Imports(*ALL)
    del old("flash_attn_interface").get_scheduler_metadata
    assert reasons(HOPPER, old) == ["flash_attn_interface has no get_scheduler_metadata", "", ""]


@pytest.mark.parametrize("version", ["2.8", "2.8.0.post2", "2.10.1", "3.0"])
def test_versions_that_will_do(version: str) -> None:
    assert reasons(AMPERE, Imports("flash_attn", flash_2_version=version))[1] == ""


@pytest.mark.parametrize("version", ["2.7", "1.9.9", "unknown", ""])
def test_versions_that_will_not_do(version: str) -> None:
    assert reasons(AMPERE, Imports("flash_attn", flash_2_version=version))[1] != ""


def test_a_rung_is_passed_over_for_what_it_does_not_take() -> None:
    imports = Imports("flash_attn_interface", "flash_attn")
    assert chosen(HOPPER, imports, asked=needs(block_size=64)) == "flash-attention-3"
    for asked, reason in (
        (needs(block_size=64), "flash-attention-2: block_size is 64; it takes multiples of 256"),
        (needs(dtype=torch.float32), "flash-attention-2: dtype is float32; it takes bfloat16"),
        (needs(heads=Heads(2, 1, 12)), "flash-attention-2: head_dim is 12; it takes multiples of 8 up to 256"),
        (needs(heads=Heads(2, 1, 264)), "flash-attention-2: head_dim is 264; it takes multiples of 8 up to 256"),
    ):
        with pytest.raises(AttentionUnavailable, match="no attention backend for A100") as error:
            chosen(AMPERE, imports, asked=asked)
        assert reason in str(error.value)
        assert "triton: triton does not import: No module named 'triton'" in str(error.value)


def test_one_that_is_wanted() -> None:
    assert chosen(HOPPER, Imports(*ALL), "flash-attention-2") == "flash-attention-2"
    with pytest.raises(AttentionUnavailable) as error:
        chosen(AMPERE, Imports("flash_attn"), "flash-attention-3")
    assert str(error.value) == (
        "attention_backend is flash-attention-3, which A100 does not have for this model: A100 is not of the Hopper "
        "generation; available: flash-attention-2"
    )
    with pytest.raises(AttentionUnavailable, match=r"block_size is 128; it takes multiples of 256; available: none"):
        chosen(AMPERE, Imports("flash_attn"), "flash-attention-2", needs(block_size=128))
    with pytest.raises(
        AttentionUnavailable, match=r"paged-torch, which A100 .*: it is not for CUDA devices; available"
    ):
        chosen(AMPERE, Imports("flash_attn"), "paged-torch")


def test_doctor_s_report_names_the_candidates() -> None:
    candidates = [backend for backend in probe()["attention_backends"] if backend["device"] == "cuda"]
    assert [candidate["name"] for candidate in candidates] == ["flash-attention-3", "flash-attention-2", "triton"]
    assert [candidate["available"] for candidate in candidates] == [
        candidate["note"] != "no CUDA device" for candidate in candidates
    ]
    assert sum(candidate["chosen"] for candidate in candidates) == any(
        candidate["available"] for candidate in candidates
    )
