"""What training minimizes: softmax or sigmoid cross-entropy, on images that MixUp may have blended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bigtransfer.feed.augment import normalize
from bigtransfer.feed.labels import multi_hot

Loss = Literal["softmax", "sigmoid"]

SIGMOID_HEAD_BIAS = -10.0
"""Where the head's biases start under the sigmoid loss, so that thousands of absent classes cost nothing at first (the authors' later
code, for ImageNet-21k)."""

_MIXUP = 3  # stream of random numbers; feed.augment uses 1 and 2


@dataclass(frozen=True)
class Mix:
    """One step's MixUp: every image i of the batch becomes lam * i + (1 - lam) * partner[i]."""

    lam: float
    partner: Tensor
    """int64 (n,): a permutation of the whole batch, so that the split into micro-batches changes nothing."""

    @classmethod
    def draw(cls, alpha: float, seed: int, step: int, count: int) -> Mix | None:
        """The MixUp of `step`: one lambda ~ Beta(alpha, alpha) for all images, as in the released code. None if alpha is 0."""
        if alpha == 0:
            return None
        rng = np.random.default_rng((seed, _MIXUP, step))
        return cls(float(rng.beta(alpha, alpha)), torch.from_numpy(rng.permutation(count)))


def inputs(images: Tensor, part: slice, mix: Mix | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The network's input for one micro-batch: normalized, blended, in `dtype` on `device`, (m, c, h, w).

    Floating-point `images` are features for the head, (n, d): blended, but neither normalized nor rounded to `dtype`.
    """
    if images.is_floating_point():
        features = images[part].to(device)
        return features if mix is None else torch.lerp(images[mix.partner[part]].to(device), features, mix.lam)
    own = normalize(images[part].to(device, non_blocking=True), torch.float32 if mix else dtype)
    if mix is None:
        return own
    partner = normalize(images[mix.partner[part]].to(device, non_blocking=True))
    return torch.lerp(partner, own, mix.lam).to(dtype)


def loss_sum(logits: Tensor, labels: Tensor, part: slice, mix: Mix | None, loss: Loss = "softmax") -> Tensor:
    """The loss summed over one micro-batch: float32 logits (m, classes) -> scalar, nats. `part` is its place in `labels`.

    labels: int64, -1 for none: (n,), or (n, k) where images have up to k classes. softmax: cross-entropy, with the classes of an
    image equally likely. sigmoid: binary cross-entropy summed over the classes (the authors' later code; the paper does not state its
    loss for multi-label sets). An image without any label, such as one that could not be read, adds nothing.
    Mixing two images' losses equals the loss on mixed targets.
    """
    own = _sum(logits, labels[part].to(logits.device), loss)
    if mix is None:
        return own
    partner = _sum(logits, labels[mix.partner[part]].to(logits.device), loss)
    return mix.lam * own + (1 - mix.lam) * partner


def _sum(logits: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    if loss == "softmax" and labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1)
    targets = multi_hot(labels, logits.shape[1])
    if loss == "softmax":
        return F.cross_entropy(logits, targets / targets.sum(1, keepdim=True).clamp(min=1), reduction="sum")
    labelled = targets.any(1, keepdim=True)
    return F.binary_cross_entropy_with_logits(logits, targets, weight=labelled.to(logits.dtype), reduction="sum")
