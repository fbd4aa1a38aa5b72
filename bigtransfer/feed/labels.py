"""The classes of a batch of images, as losses and measurements take them."""

from __future__ import annotations

import torch
from torch import Tensor


def multi_hot(labels: Tensor, classes: int) -> Tensor:
    """int64 (n,) or (n, k), -1 for none -> float32 (n, classes): 1 for each class of the image."""
    labels = labels.reshape(len(labels), -1)
    # Absent labels fall into a column of their own, which is cut off.
    places = torch.where(labels < 0, classes, labels)
    hot = torch.zeros(len(labels), classes + 1, device=labels.device)
    return hot.scatter_(1, places, 1.0)[:, :classes]
