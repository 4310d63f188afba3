"""Runs inside vLLM's worker (0.32): the ways in which new weights reach it.

Importing this module registers a weight transfer engine, which ``--weight-transfer-config`` names; vLLM imports it
before it loads the model, because ``--worker-extension-cls`` names ``WorkerExtension``. The whole load happens within
``update_weights``, one call between two forward passes; starting and finishing an update do nothing here, so a load
that fails leaves nothing open, and a bad order fails before it touches the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.lora.request import LoRARequest
from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator
from vllm.platforms import current_platform

from areal_x.engine.transfer.broadcast_group import BroadcastGroup, receive_buckets, views_of
from areal_x.engine.transfer.cuda_handle import import_flat
from areal_x.engine.transfer.samples import checked
from areal_x.engine.transfer.shared_buffers import SharedVersion, TensorSpec, specs_from_json
from areal_x.engine.transfer.vllm_cpu_seeds import restore_cpu_draws
from areal_x.engine.transfer.vllm_reload import ExpectedWeights, checkpoint_shapes, reload_model

__all__ = ["ENGINE_NAME", "WorkerExtension"]

ENGINE_NAME = "areal_x"

_Source = tuple[list[TensorSpec], Iterable[tuple[str, torch.Tensor]]]

_WAYS = ["shared_memory", "broadcast", "cuda_ipc", "disk"]


class WorkerExtension:
    """Mixed into vLLM's worker class; its name tells clients that this module is there."""

    def areal_x_ways(self) -> list[str]:
        """The ways that ``update_weights`` knows."""
        return _WAYS

    def areal_x_swap_adapter(self, name: str, path: str) -> None:
        """Put the adapter at ``path`` in the place of the one that is loaded, for requests in flight, too.

        vLLM's own ``load_inplace`` would have each request name the folder that it began with, and read that folder
        again at each of its steps: what is in flight would bring the adapter before back.
        """
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        (number,) = runner.list_loras()
        runner.add_lora(LoRARequest(name, number, path, load_inplace=True))


@dataclass
class _JoinInfo(WeightTransferInitInfo):
    order: dict[str, Any]


@dataclass
class _UpdateInfo(WeightTransferUpdateInfo):
    order: dict[str, Any]


class _Engine(WeightTransferEngine[_JoinInfo, _UpdateInfo]):
    init_info_cls = _JoinInfo
    update_info_cls = _UpdateInfo
    supports_draft_weight_update = False

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)
        self._group: BroadcastGroup | None = None
        self._opened: tuple[dict[str, Any], torch.Tensor] | None = None
        """The trainer's CUDA buffer and the handle that it came by: a handle is opened once."""
        hf_config = self.model_config.hf_config
        self._expected = ExpectedWeights(
            checkpoint_shapes(self.model_config.model),
            model,
            ties_embeddings=bool(getattr(hf_config, "tie_word_embeddings", False)),
            is_quantized=self.model_config.quantization is not None,
        )

    def init_transfer_engine(self, init_info: _JoinInfo) -> None:
        """Join the trainer's group, leaving the one before; vLLM allows this as often as it is asked for."""
        join = init_info.order["join"]
        self.shutdown()
        self._group = BroadcastGroup(join, rank=int(join["rank"]) + self.parallel_config.rank)

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        pass

    def receive_weights(self, update_info: _UpdateInfo) -> None:
        order = update_info.order
        with torch.no_grad(), self._source(order) as (specs, named):
            self._expected.check(specs)
            if "sums" in order:
                named = checked(named, order["sums"], int(order["version"]))
            reload_model(self.model, self.model_config, named, self._expected)

    def _source(self, order: dict[str, Any]) -> AbstractContextManager[_Source]:
        way = order.get("way")
        if way == "shared_memory":
            return _shared_memory(order)
        if way == "disk":
            return _disk(order)
        if way == "broadcast":
            return self._broadcast(order)
        if way == "cuda_ipc":
            return self._cuda_ipc(order)
        raise ValueError(f"no way {way!r}; this server knows {', '.join(_WAYS)}")

    @contextmanager
    def _broadcast(self, order: dict[str, Any]) -> Iterator[_Source]:
        if self._group is None or self._group.name != order["group"]:
            raise ValueError(f"this worker has not joined the group {order['group']!r}")
        specs = specs_from_json(list(zip(order["names"], order["shapes"], order["dtypes"], strict=True)))
        try:
            yield specs, receive_buckets(self._group, order, self.device)
        except BaseException:
            # The sender is told by the broken connection instead of waiting for its time to be up.
            self.shutdown()
            raise

    @contextmanager
    def _cuda_ipc(self, order: dict[str, Any]) -> Iterator[_Source]:
        if self._opened is None or self._opened[0] != order["handle"]:
            self._opened = None
            self._opened = order["handle"], import_flat(order["handle"], self.device)
        specs = specs_from_json(order["specs"])
        yield specs, views_of(self._opened[1][int(order["start"]) :], specs)
        # The trainer may write into this half again as soon as it hears of the end.
        torch.cuda.synchronize(self.device)

    def shutdown(self) -> None:
        """Leave the group, and close the trainer's buffer."""
        self._opened = None
        group, self._group = self._group, None
        if group is not None:
            group.close()


@contextmanager
def _shared_memory(order: dict[str, Any]) -> Iterator[_Source]:
    with SharedVersion(order) as version:
        yield specs_from_json(order["specs"]), version.tensors()


@contextmanager
def _disk(order: dict[str, Any]) -> Iterator[_Source]:
    folder = Path(order["path"])
    files = sorted(str(path) for path in folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no safetensors files")
    named = list(safetensors_weights_iterator(files, use_tqdm_on_load=False))
    yield _specs_of(named), named


def _specs_of(named: Iterable[tuple[str, torch.Tensor]]) -> list[TensorSpec]:
    return [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named]


if ENGINE_NAME not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(ENGINE_NAME, _Engine)
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        restore_cpu_draws(CPUModelRunner)
