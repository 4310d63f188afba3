"""The engine's process: reads frames, decodes, sends what ended. Started by ``engine_process`` in a fresh interpreter.

Loop: consumes frames from the driver; waits only when there is nothing to decode; is unblocked by a frame, or by the
end of the stream, which ends the process; produces one frame per decode step that ended something.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
import traceback
from typing import Any

from areal_x.api.errors import EngineError
from areal_x.engine.inference.messages import FrameBuffer, Message, WorkerConfig, encode_frame

__all__ = ["main"]

_RECEIVE_BYTES = 2**18
_PR_SET_PDEATHSIG = 1
_NICENESS = 10


def main() -> None:
    """Entry point; ``argv[1]`` is the descriptor of the inherited socket."""
    # Ctrl-C reaches the whole process group; the driver decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = _Channel(socket.socket(fileno=int(sys.argv[1])))
    config = channel.wait_for_first()
    _die_with_parent(config.parent_pid)
    try:
        worker = _Worker(channel, config)
    except (EngineError, OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        # What a wrong model path or an unsupported model raises; the driver shows it as one line.
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        channel.send([("failed", str(error).strip() or type(error).__name__)])
        os._exit(1)
    try:
        worker.run()
    except Exception:
        # The boundary of the process: whatever decoding raises is printed, and the driver shows it. Leaves at once,
        # since taking the interpreter down can take longer than the driver should wait.
        traceback.print_exc()
        os._exit(1)


def _die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the driver ends; the end of the stream does the same, a decode step later."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("the driver ended while the engine started")


def _let_training_go_first() -> None:
    """Where cores are short, the training step comes before generation, which loses nothing by it: while a step waits
    for samples, the trainer sleeps."""
    for thread in os.listdir("/proc/self/task") if sys.platform == "linux" else ():
        os.setpriority(os.PRIO_PROCESS, int(thread), _NICENESS)


class _Channel:
    """The blocking end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = FrameBuffer()
        self._pending: list[Message] = []

    def wait_for_first(self) -> WorkerConfig:
        messages = self.receive(block=True)
        config = messages.pop(0)[1]
        self._pending = messages
        assert isinstance(config, WorkerConfig)
        return config

    def receive(self, block: bool) -> list[Message]:
        """Messages that arrived; waits for the first when ``block``. The end of the stream ends the process."""
        messages, self._pending = self._pending, []
        flags = 0 if block and not messages else socket.MSG_DONTWAIT
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, flags)
            except BlockingIOError:
                return messages
            if not data:
                os._exit(0)
            messages += self._buffer.feed(data)
            if len(data) < _RECEIVE_BYTES and (messages or not block):
                return messages

    def send(self, messages: list[Message]) -> None:
        self._socket.sendall(encode_frame(messages))


class _Worker:
    """Answers the driver's messages between decode steps."""

    def __init__(self, channel: _Channel, config: WorkerConfig) -> None:
        import torch
        from transformers.utils import logging

        from areal_x.engine.inference.continuous_batch import ContinuousBatch
        from areal_x.engine.inference.model_runner import ModelRunner, load_model
        from areal_x.engine.inference.stopping import end_of_sequence_ids, load_tokenizer
        from areal_x.engine.weights import WeightsReader

        logging.disable_progress_bar()
        torch.set_num_threads(config.num_threads)
        cuda = torch.cuda.is_available()
        device = torch.device(("cuda" if cuda else "cpu") if config.device == "auto" else config.device)
        if device.type == "cuda" and not cuda:
            raise EngineError("device 'cuda' was asked for, but this machine has none; set model.device=cpu")
        model = load_model(config.model_path, config.dtype, device, config.trust_remote_code)
        tokenizer = load_tokenizer(config.model_path, config.trust_remote_code)
        eos_ids = end_of_sequence_ids(model, tokenizer)
        runner = ModelRunner(model, config.num_slots, config.max_length)
        self._batch = ContinuousBatch(
            runner,
            config.num_slots,
            config.max_length,
            eos_ids,
            tokenizer=tokenizer,
            recompute=config.recompute,
            version=config.initial_version,
        )
        self._reader = None
        if config.weights is not None:
            self._reader = WeightsReader(config.weights)
            self._batch.check_weights(self._reader)
        self._channel = channel
        self._paused = False
        self._replies: list[Message] = []
        # What is loaded stays; a collection in the middle of decoding must not walk it.
        gc.collect()
        gc.freeze()
        if device.type == "cpu":
            _let_training_go_first()
        info = {"vocab_size": runner.vocab_size, "eos_ids": eos_ids, "has_tokenizer": tokenizer is not None}
        channel.send([("ready", info)])

    def run(self) -> None:
        """Until the driver closes the stream."""
        while True:
            decoding = self._batch.has_work and not self._paused
            for message in self._channel.receive(block=not decoding):
                self._handle(message)
            if self._batch.has_work and not self._paused:
                ended = self._batch.step()
                if ended:
                    self._replies.append(("ended", ended))
            if self._replies:
                self._channel.send(self._replies)
                self._replies = []

    def _handle(self, message: Message) -> None:
        match message:
            case ("generate", requests):
                self._batch.submit(requests)
            case ("cancel", number):
                self._batch.cancel(number)
            case (kind, call, *arguments):
                self._replies.append(("answer", call, self._answer(kind, arguments)))

    def _answer(self, kind: str, arguments: list[Any]) -> Any:
        batch = self._batch
        match kind:
            case "update":
                if self._reader is None:
                    return EngineError("the engine was started without shared weights")
                # Several updates may have been asked for at once; newer weights serve the older request.
                return batch.take_weights(self._reader, arguments[0])
            case "pause" | "resume":
                self._paused = kind == "pause"
                return None
            case "health":
                return {
                    "version": batch.version,
                    "num_running": batch.slots.num_live,
                    "num_waiting": len(batch.waiting),
                    "num_generated_tokens": batch.num_generated_tokens,
                    "busy_seconds": batch.busy_seconds,
                    "num_updates": batch.num_updates,
                }
        raise EngineError(f"the driver sent an unknown message {kind!r}")
