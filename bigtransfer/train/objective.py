"""What training minimizes, on images that MixUp may have blended: softmax or sigmoid cross-entropy, the distance to a teacher, or the loss
of a classifier that is solved in closed form."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtransfer.feed.augment import normalize
from bigtransfer.feed.labels import multi_hot

Loss = Literal["softmax", "sigmoid"]

SIGMOID_HEAD_BIAS = -10.0
"""Where the head's biases start under the sigmoid loss, so that thousands of absent classes cost nothing at first (the authors' later
code, for ImageNet-21k)."""


class Goal(Protocol):
    """What a training minimizes, of whatever its network gives."""

    def losses(
        self,
        output: Any,
        labels: Tensor,
        part: slice,
        mix: Mix | None,
        teacher: Tensor | None = None,
        readable: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What is added up, each summed over the images of one micro-batch, by name: `part` is their place in `labels` and `readable`."""
        ...

    def weighted(self, found: Mapping[str, Tensor]) -> Tensor:
        """The one number that is minimized, of what `losses` found."""
        ...


@dataclass(frozen=True)
class Aim:
    """A classifier's goal: `label_weight` times the loss on the labels, plus `teacher_weight` times the distance to a teacher."""

    loss: Loss = "softmax"
    vocabularies: tuple[int, ...] = ()
    """See `loss_sum`."""
    label_weight: float = 1.0
    teacher_weight: float = 0.0
    temperature: float = 1.0
    """Of the distance to the teacher."""

    def losses(
        self,
        output: Tensor,
        labels: Tensor,
        part: slice,
        mix: Mix | None,
        teacher: Tensor | None = None,
        readable: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Of logits (m, classes), nats: "labels" (`loss_sum`), unless they have no weight, and, where there are a teacher's logits (m, its
        classes), "teacher" (`distance_sum`), of the last logits, as many as the teacher has."""
        found = {}
        own = output if teacher is None else output[:, : output.shape[1] - teacher.shape[1]]
        if self.label_weight:
            found["labels"] = loss_sum(own, labels, part, mix, self.loss, self.vocabularies)
        if teacher is not None:
            taught = output[:, output.shape[1] - teacher.shape[1] :]
            found["teacher"] = distance_sum(taught, teacher, readable, part, mix, self.temperature)
        return found

    def weighted(self, found: Mapping[str, Tensor]) -> Tensor:
        """The sum by the weights."""
        weights = {"labels": self.label_weight, "teacher": self.teacher_weight}
        terms = [weights[name] * value for name, value in found.items()]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]


@dataclass(frozen=True)
class LeaveOneOut:
    """The goal of a network that is to be good under a classifier solved in closed form: each image of a batch is judged by the ridge
    regression of the others, solved on the features that the network gives for this batch.

    No head is learnt, so a few images of a class cannot be learnt by heart through it, as they are by a head with thousands of features
    (docs/lab-notes.md). Differentiating through the solution: Bertinetto et al. 2019 (arXiv 1805.08136); to adapt BiT's norms by episodes
    of few images: FiT (arXiv 2206.08671), whose classifier is another one, and whose episodes are in two halves.
    """

    penalty: float
    """As `left_out` takes it."""
    temperature: float
    """What its scores are divided by to become logits."""

    def losses(
        self,
        output: Tensor,
        labels: Tensor,
        part: slice,
        mix: Mix | None,
        teacher: Tensor | None = None,
        readable: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Of standardized features (m, d) and labels int64 (n,), -1 for none, "left out": the cross-entropy, nats, of the images whose
        class others of this micro-batch have too, in the mean, times m. 0 where there are none. MixUp blends what is to be told."""
        assert teacher is None, "a network that is judged by its own images has no teacher"
        classes = max(1, int(labels.max()) + 1)
        targets = multi_hot(labels[part].to(output.device), classes)
        if mix is not None:
            targets = mix.lam * targets + (1 - mix.lam) * multi_hot(
                labels[mix.partner[part]].to(output.device), classes
            )
        scores, wanted = self.judged(output, targets)
        if not len(scores):
            return {"left out": output.sum() * 0.0}
        return {"left out": F.cross_entropy(scores / self.temperature, wanted) * (part.stop - part.start)}

    def judged(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of standardized features (m, d) and targets (m, c), each row of sum 1 or, of an image that counts for nothing, less: what the
        others say of those images whose class others have, (k, classes that there are), and these images' targets."""
        known = targets.sum(1) > 1 - 1e-6
        targets, features = targets[known], features[known]
        targets = targets[:, targets.sum(0) > 0].to(features.dtype)
        others = targets.sum(0) - targets > 1e-6
        judged = (targets * others).sum(1) > 0.5
        if not judged.any():
            return features.new_empty(0, targets.shape[1]), targets[judged]
        return left_out(features, targets, self.penalty)[judged], targets[judged]

    def weighted(self, found: Mapping[str, Tensor]) -> Tensor:
        """That number itself."""
        return found["left out"]


def left_out(features: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """What ridge regression with a free intercept, of features (n, d) on targets (n, c), says of each row when it is solved without that
    row: (n, c), exact, and differentiable in all arguments. penalty: on the squares of the weights, above 0, for sums over n rows.

    By (prediction - leverage * target) / (1 - leverage), which holds for every row of a least-squares solution (Allen 1974); of n rows
    fewer than features, in O(n^2 d). The system is solved in float64.
    """
    count = len(features)
    centred = features - features.mean(0)
    kernel = (centred @ centred.T).double()
    mean = targets.double().mean(0)
    hat = torch.linalg.solve(kernel + penalty * torch.eye(count, dtype=kernel.dtype, device=kernel.device), kernel)
    leverage = (hat.diagonal() + 1 / count)[:, None]
    predicted = mean + hat @ (targets.double() - mean)
    return ((predicted - leverage * targets.double()) / (1 - leverage).clamp_min(1e-9)).to(features.dtype)


_MIXUP = 3  # stream of random numbers; feed.augment uses 1 and 2


@dataclass(frozen=True)
class Mix:
    """One step's MixUp: every image i of the batch becomes lam * i + (1 - lam) * partner[i]."""

    lam: float
    partner: Tensor
    """int64 (n,): a permutation of the whole batch, so that the split into micro-batches changes nothing."""

    @classmethod
    def draw(cls, alpha: float, seed: int, step: int, count: int, device: torch.device | None = None) -> Mix | None:
        """The MixUp of `step`: one lambda ~ Beta(alpha, alpha) for all images, as in the released code. None if alpha is 0.

        device: where the images are."""
        if alpha == 0:
            return None
        rng = np.random.default_rng((seed, _MIXUP, step))
        return cls(float(rng.beta(alpha, alpha)), torch.from_numpy(rng.permutation(count)).to(device))


_DROPOUT = 4  # the next stream


@contextlib.contextmanager
def dropout(model: nn.Module, share: float, seed: int, step: int, count: int, part: slice) -> Iterator[None]:
    """Within, the model's head sees of its features `(m, d)` in training each with the probability 1 - share, and then multiplied by
    1 / (1 - share); else 0. part: the place of these images in the batch of `count`, for all of which is drawn at once, by seed and step
    alone, so that the split into micro-batches changes nothing."""
    if share == 0:
        yield
        return

    def drop(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not module.training:
            return inputs
        features = inputs[0]
        drawn = np.random.default_rng((seed, _DROPOUT, step)).random((count, features.shape[1]), np.float32)
        kept = torch.from_numpy(drawn[part] >= share).to(features.device)
        return (features * kept / (1 - share), *inputs[1:])

    head = model.head
    assert isinstance(head, nn.Module)
    hook = head.register_forward_pre_hook(drop)
    try:
        yield
    finally:
        hook.remove()


Normalize = Callable[[Tensor, torch.dtype], Tensor]
"""uint8 (n, c, h, w) -> a network's input of the dtype, by an affine function of the pixels."""


def inputs(
    images: Tensor,
    part: slice,
    mix: Mix | None,
    dtype: torch.dtype,
    device: torch.device,
    normalized: Normalize = normalize,
) -> Tensor:
    """A network's input for one micro-batch: normalized, blended, in `dtype` on `device`, (m, c, h, w).

    Floating-point `images` are features for the head, (n, d): blended, but neither normalized nor rounded to `dtype`.
    """
    if images.is_floating_point():
        features = images[part].to(device)
        return features if mix is None else torch.lerp(images[mix.partner[part]].to(device), features, mix.lam)
    own = normalized(images[part].to(device, non_blocking=True), torch.float32 if mix else dtype)
    if mix is None:
        return own
    partner = normalized(images[mix.partner[part]].to(device, non_blocking=True), torch.float32)
    return torch.lerp(partner, own, mix.lam).to(dtype)


def loss_sum(
    logits: Tensor,
    labels: Tensor,
    part: slice,
    mix: Mix | None,
    loss: Loss = "softmax",
    vocabularies: Sequence[int] = (),
) -> Tensor:
    """The loss summed over one micro-batch: float32 logits (m, classes) -> scalar, nats. `part` is its place in `labels`.

    labels: int64, -1 for none: (n,), or (n, k) where images have up to k classes. softmax: cross-entropy, with the classes of an
    image equally likely. sigmoid: binary cross-entropy summed over the classes (the authors' later code; the paper does not state its
    loss for multi-label sets). An image without any label, such as one that could not be read, adds nothing.
    vocabularies: numbers of classes of the labelled sets, in the order of the logits, of which there may be more behind. An image's
    loss is then over the logits of its own set's classes alone: that it shows nothing of another set is not known. () for one set.
    Mixing two images' losses equals the loss on mixed targets.
    """
    own = _sum(logits, labels[part].to(logits.device), loss, vocabularies)
    if mix is None:
        return own
    partner = _sum(logits, labels[mix.partner[part]].to(logits.device), loss, vocabularies)
    return mix.lam * own + (1 - mix.lam) * partner


def _sum(logits: Tensor, labels: Tensor, loss: Loss, vocabularies: Sequence[int]) -> Tensor:
    counted = _counted(logits, labels, vocabularies) if vocabularies else None
    if loss == "sigmoid":
        targets = multi_hot(labels, logits.shape[1])
        weight = targets.any(1, keepdim=True) if counted is None else counted
        return F.binary_cross_entropy_with_logits(logits, targets, weight=weight.to(logits.dtype), reduction="sum")
    if counted is not None:
        # Not minus infinity, which times a target of 0 is not 0.
        logits = logits.masked_fill(~counted, torch.finfo(logits.dtype).min)
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1)
    targets = multi_hot(labels, logits.shape[1])
    return F.cross_entropy(logits, targets / targets.sum(1, keepdim=True).clamp(min=1), reduction="sum")


def _counted(logits: Tensor, labels: Tensor, vocabularies: Sequence[int]) -> Tensor:
    """Which logits an image's loss is over, bool (m, classes): those of its own set, none of an image without a label.

    No step here depends on what the labels are: to tell, a GPU would first have to finish all that it was given."""
    leading = labels if labels.ndim == 1 else labels.amax(1)  # all labels of an image are of one set
    columns = torch.arange(logits.shape[1], device=logits.device)
    counted = torch.zeros_like(logits, dtype=torch.bool)
    first = 0
    for classes in vocabularies:
        rows = (leading >= first) & (leading < first + classes)
        counted |= rows[:, None] & (columns >= first) & (columns < first + classes)
        first += classes
    return counted


def distance_sum(
    logits: Tensor, teacher: Tensor, readable: Tensor | None, part: slice, mix: Mix | None, temperature: float = 1.0
) -> Tensor:
    """The student's distance to its teacher, summed over one micro-batch: logits of both (m, classes) -> scalar, nats.

    T^2 KL(softmax(teacher / T) || softmax(logits / T)): its gradient keeps its scale whatever the temperature T (Hinton et al. 2015,
    arXiv 1503.02531; at T = 1 the loss of "a good teacher is patient and consistent", arXiv 2106.05237). Both have seen the same
    blended images, so MixUp needs no second term; an image that could not be read (`readable` False, bool (n,)) counts by its share.
    """
    known = F.log_softmax(teacher.to(logits.dtype) / temperature, dim=1)
    learnt = F.log_softmax(logits / temperature, dim=1)
    each = F.kl_div(learnt, known, reduction="none", log_target=True).sum(1)
    if readable is not None:
        counted = readable.to(each.device, each.dtype)
        own = counted[part]
        each = each * (own if mix is None else mix.lam * own + (1 - mix.lam) * counted[mix.partner[part]])
    return temperature**2 * each.sum()
