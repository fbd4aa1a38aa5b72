"""What training minimizes: softmax cross-entropy, on images that MixUp may have blended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bigtransfer.data.augment import normalize

_MIXUP = 3  # stream of random numbers; data.augment uses 1 and 2


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


def loss_sum(logits: Tensor, labels: Tensor, part: slice, mix: Mix | None) -> Tensor:
    """Cross-entropy summed over one micro-batch, (m, classes) float32 logits -> scalar, nats.

    Mixing the two losses equals the loss on mixed one-hot labels.
    """
    own = F.cross_entropy(logits, labels[part].to(logits.device), reduction="sum")
    if mix is None:
        return own
    partner = F.cross_entropy(logits, labels[mix.partner[part]].to(logits.device), reduction="sum")
    return mix.lam * own + (1 - mix.lam) * partner
