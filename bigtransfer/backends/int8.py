"""Exported networks whose convolutions compute in whole numbers of 8 bits: a quarter of the bytes, and where the processor multiplies them
natively the soonest.

By onnxruntime's own static quantization: each kernel's channels are stored as whole numbers from -64 to 64 with a scale of their own, and
what each convolution sees and gives is rounded to 256 steps between the least and the greatest value that some images showed there. With
twice as many steps for the weights, processors that add pairs of products in 16 bits, those without VNNI, cut sums off, and a file that was
right where it was made would be wrong elsewhere (benchmarks/results/int8_cpu_2026-11-28.md). The head stays in float32,
for the features of several blocks are of very different sizes. It is an ONNX file like the others; OpenVINO and browsers compute it, too.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bigtransfer.backends import extra, onnx_file
from bigtransfer.catalog import ModelCard


def quantized(content: bytes, batches: Iterable[np.ndarray]) -> bytes:
    """The same of an ONNX file that takes uint8 pixels. batches: of images to learn the ranges from, uint8 `(n, channels, size, size)`."""
    onnx = extra("onnx", "onnx")
    library = extra("onnxruntime.quantization", "onnx")

    class Reader(library.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            some = next(self.batches, None)
            return None if some is None else {"image": np.ascontiguousarray(some)}

    with tempfile.TemporaryDirectory(prefix="bit-") as folder:
        made = Path(folder) / "int8.onnx"
        log = logging.getLogger()
        before = log.level
        log.setLevel(logging.ERROR)  # it advises shape inference, which the free batch makes pointless
        try:
            library.quantize_static(
                onnx.load_from_string(content),
                made,
                Reader(),
                quant_format=library.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                reduce_range=True,
                activation_type=library.QuantType.QUInt8,
                weight_type=library.QuantType.QInt8,
            )
        finally:
            log.setLevel(before)
        return made.read_bytes()


def with_card(content: bytes, card: ModelCard) -> bytes:
    """The file with that card in the place of what is in its metadata."""
    onnx = extra("onnx", "onnx")
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {onnx_file.CARD_KEY: card.to_json()})
    return model.SerializeToString()
