"""A rank's start, from its launch to a decoder that runs with the others: meet, load a part, join."""

from collections.abc import Callable

import torch
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # exported, but for the type stubs

from pagewire.wire.launch import RankGroup, WorkerLaunch
from pagewire.wire.model import DType, ModelSpec, local_decoder
from pagewire.wire.tensors import check_tensors
from pagewire.worker.attention.base import AttentionBackend
from pagewire.worker.loop import RankLost
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.model.layers import LinearKind
from pagewire.worker.model.ops import DecoderOps
from pagewire.worker.parallel.collectives import Collectives, gloo_collectives, least, nccl_collectives
from pagewire.worker.parallel.parallel_linear import parallel_decoder
from pagewire.worker.parallel.rendezvous import Progress, RendezvousError, meet, watch
from pagewire.worker.parallel.shard import Rank, ShardedSource, VocabularyPart
from pagewire.worker.weights.build import TORCH_DTYPES, build_decoder, open_source
from pagewire.worker.weights.source import settle_tying


class RankStart:
    """This rank in one start of its group. `join` and `memory_share` wait for the other ranks."""

    def __init__(
        self, launch: WorkerLaunch, group: RankGroup, progress: Progress, on_lost: Callable[[str], None]
    ) -> None:
        """Meets rank 0. Where the ranks are on several hosts, `on_lost` is called from now on, on another thread and
        once, when one of them is gone. Raises RendezvousError."""
        self.rank = Rank(launch.rank, launch.world_size)
        self._group = group
        self._meeting = meet(launch, group, progress)
        self.incarnation = self._meeting.incarnation
        if group.store.startswith("tcp://"):
            watch(self._meeting, on_lost)

    def load(
        self,
        spec: ModelSpec,
        dtype: DType,
        attention: AttentionBackend,
        progress: Progress,
        ops: DecoderOps,
        linears: LinearKind,
        num_threads: int,
    ) -> Decoder:
        """A decoder of this rank's part, on the CPU, which reads that part alone; it is no use before `parallel`.
        Raises WeightsError and ValueError as `pagewire.worker.weights.build.load_decoder` does."""
        whole = open_source(spec)
        check_tensors(whole, spec.decoder)
        config = settle_tying(whole, spec.decoder, TORCH_DTYPES[dtype])
        part = ShardedSource(whole, config, self.rank)
        local_config = local_decoder(config, self.rank.world_size)
        return build_decoder(part, local_config, dtype, attention, progress, ops, linears, num_threads)

    def join(self, kernels: str, device: torch.device, progress: Progress) -> Collectives:
        """What this rank holds is loaded: connect with the others. `kernels` names what draws this rank's tokens.
        Raises RendezvousError."""
        self._meeting.wait_for_all(kernels, progress)
        store = PrefixStore("collectives", self._meeting.store)
        try:
            if device.type == "cuda":
                return nccl_collectives(store, self.rank.number, self.rank.world_size, device)
            return gloo_collectives(store, self.rank.number, self.rank.world_size, self._meeting.host)
        except (RuntimeError, RankLost) as error:
            raise RendezvousError(f"rank {self.rank.number} cannot connect with the others: {error}") from error

    def parallel(self, local: Decoder, vocab_size: int, collectives: Collectives) -> Decoder:
        """The whole model's decoder, from one that was built of this rank's part."""
        return parallel_decoder(local, VocabularyPart.of(vocab_size, self.rank), collectives)

    def memory_share(self, available_bytes: int, collectives: Collectives, device: torch.device) -> int:
        """How much of the memory that is available here each rank may count on: the same on all of them."""
        return least(collectives, available_bytes // self._group.num_local_ranks, device)
