"""Networks computed by ONNX Runtime, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

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

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class _Session(Session):
    library: ClassVar[Name] = "onnxruntime"

    def __init__(self, file: OnnxFile, where: str, device: str | None, precision: Precision) -> None:
        if precision == "bf16":
            raise ConfigError("onnxruntime computes in fp32; for bf16 take --backend openvino or torch.")
        if file.quantized:
            refuse_precision(precision, where)
        runtime = extra("onnxruntime", "onnx")
        self._file, self._where, self.card = file, where, file.card
        self.device, self.precision = device or "cpu", "int8" if file.quantized else "fp32"
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 4  # what is wrong is raised as well
        with opening(where):
            self._session = runtime.InferenceSession(file.content, options, providers=[_provider(runtime, self.device)])

    def _computed(self, images: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        return dict(zip(names, self._session.run([*names], {"image": images}), strict=True))


class OnnxRuntime(_Session, ExportedClassifier):
    name = _Session.library


class OnnxDetector(_Session, ExportedDetector):
    """A detector's file."""


def _provider(runtime: Any, device: str) -> Any:
    kind, _, number = device.partition(":")
    name = _PROVIDERS.get(kind)
    if name is None or (number and not number.isdecimal()) or name not in runtime.get_available_providers():
        raise ConfigError(f"onnxruntime has no device {device!r} here; take --device cpu.")
    return (name, {"device_id": int(number or 0)}) if kind == "cuda" else name
