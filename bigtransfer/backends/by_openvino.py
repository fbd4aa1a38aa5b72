"""Networks computed by OpenVINO, without torch: on Intel's and AMD's processors often the soonest."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Generator, Sequence
from threading import Lock
from typing import ClassVar

import numpy as np

from bigtransfer.backends import Name, Precision, extra
from bigtransfer.backends.exported import (
    ExportedClassifier,
    ExportedDetector,
    Session,
    opening,
    refuse_precision,
)
from bigtransfer.backends.onnx_file import OnnxFile
from bigtransfer.errors import ConfigError
from bigtransfer.machine import threads

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> _SignalStack | None:
    """Where this thread's signal handlers run instead of its stack (sigaltstack); None where the system is not Linux."""
    if sys.platform != "linux":
        return None
    found = _SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found


@contextlib.contextmanager
def signal_stack_kept() -> Generator[None, None, None]:
    """Puts this thread's signal stack back at the end of the block.

    OpenVINO (2026.4) lays down one of its own and may free it without saying so: the next Ctrl-C or SIGTERM, which Python handles on
    that stack, then ends the process by a segmentation fault instead of saving what there is.
    """
    before = signal_stack()
    try:
        yield
    finally:
        if before is not None:
            ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)


class _Session(Session):
    library: ClassVar[Name] = "openvino"

    def __init__(self, file: OnnxFile, where: str, device: str | None, precision: Precision) -> None:
        openvino = extra("openvino", "openvino")
        if device not in (None, "cpu"):
            raise ConfigError(f"openvino computes on the CPU here, not on {device!r}; take --device cpu.")
        if file.quantized:
            refuse_precision(precision, where)
        self._file, self._where, self.card, self.device = file, where, file.card, "cpu"
        with signal_stack_kept():
            core = openvino.Core()
            native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = precision if precision != "auto" else "bf16" if native else "fp32"
        if self.precision == "bf16" and not native:
            raise ConfigError(
                "This processor has no bf16 for openvino, which would compute in fp32. Take --precision fp32."
            )
        hint = _HINTS[self.precision]
        if file.quantized:
            self.precision = "int8"  # and between the convolutions as the hint says
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # to cores that others may be using
        }
        with opening(where):
            with signal_stack_kept():
                model = core.read_model(file.content)
            with signal_stack_kept():
                self._request = core.compile_model(model, "CPU", options).create_infer_request()
        self._one_at_a_time = Lock()

    def _computed(self, images: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        with self._one_at_a_time:
            found = self._request.infer({"image": images})
            return {name: np.array(found[name]) for name in names}


class OpenVino(_Session, ExportedClassifier):
    name = _Session.library


class OpenVinoDetector(_Session, ExportedDetector):
    """A detector's file."""
