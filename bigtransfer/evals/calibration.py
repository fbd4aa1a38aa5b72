"""Probabilities that can be taken at their word: one temperature, fitted on answers to images that the model did not learn from.

Temperature scaling (Guo et al. 2017, arXiv 1706.04599): the logits are divided by one number before they become probabilities. It moves no
answer, since all classes of an image keep their order; it changes how sure the model is of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtransfer.catalog import Calibrated
from bigtransfer.evals.linear import Probe
from bigtransfer.evals.metrics import Classification
from bigtransfer.evals.multilabel import MultiLabel
from bigtransfer.feed.labels import multi_hot

FEWEST = 20
"""Images below which no temperature is fitted."""

PRIOR = 0.5
"""Before any image is seen the logarithm of the temperature is taken to be normal, of mean 0 and this standard deviation: networks trained
with the cross-entropy are off by such factors. Of few images it keeps the temperature near 1, and of separable classes, whose likelihood
wants it to be 0, away from that."""

SOLVED = 0.12
"""The same of a classifier solved in closed form, which leave-one-out has given one: so far off that is on other images
(docs/lab-notes.md)."""

RANGE = 3.0
"""The largest logarithm of a temperature, and the negative of the smallest."""

FOLDS = 5
"""Parts of the images, each of which is judged at the temperature of the others."""


def fit(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Calibrated | str:
    """The temperature of greatest posterior probability on held-out images, and what it is worth; or why there is none, as half a sentence.

    logits float `(n, classes)` on images that the model has not learnt from. labels int `(n,)`; or `(n, k)`, padded with -1, of a model
    that gives several: then the sigmoids' temperature, one for all, for which an image counts once however many classes there are.
    weights float `(n,)`: how much each image counts; None: all the same.

    What the probabilities are worth afterwards is judged by cross-fitting: each of `FOLDS` parts of the images at the temperature of the
    others. Where that is no better than before, the temperature is 1.
    """
    n = len(labels)
    if n < FEWEST:
        return f"{n} held-out images are too few to fit a temperature ({FEWEST} are needed)"
    answers = _Answers.of(logits, labels, weights)
    order = (labels if labels.ndim == 1 else labels[:, 0]).cpu().argsort(stable=True)
    fold = torch.empty(n, dtype=torch.int64)
    fold[order] = torch.arange(n) % FOLDS  # of each class in proportion
    temperatures = torch.tensor(
        [answers.part(fold != part).temperature() for part in range(FOLDS)], dtype=torch.float64
    )
    apart = answers.at(temperatures[fold][:, None])
    temperature = answers.temperature()
    if apart.loss() >= answers.loss():
        temperature, apart = 1.0, answers
    return Calibrated(
        temperature=temperature,
        by="held-out images",
        images=n,
        loss=(answers.loss(), apart.loss()),
        ece=(answers.ece(), apart.ece()),
    )


def of_solved(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """The temperature of greatest posterior probability on held-out images, any number of them, of a classifier that has one by
    leave-one-out already; arguments as of `fit`."""
    return _Answers.of(logits, labels, weights).temperature(SOLVED)


def of_leave_one_out(probe: Probe) -> Calibrated | None:
    """What the temperature of a closed form is worth, by the answers that chose it: to each image, of the classifier fitted without it.
    Before: the regression's scores as if they were logits. None where too few images can be judged so."""
    if len(probe.answers) < FEWEST:
        return None
    return _judged(probe.answers, probe.answered, probe.temperature, "leave-one-out")


def of_choice(logits: Tensor, labels: Tensor, temperature: float) -> Calibrated | None:
    """What a temperature is worth that was fitted to held-out images and that the logits float `(n, classes)` have been divided by;
    labels int `(n,)`. None for too few."""
    return None if len(labels) < FEWEST else _judged(logits, labels, temperature, "held-out images")


def _judged(
    logits: Tensor, labels: Tensor, temperature: float, by: Literal["leave-one-out", "held-out images"]
) -> Calibrated:
    after = _Answers.of(logits, labels)
    before = after.at(1 / temperature)
    return Calibrated(
        temperature=temperature,
        by=by,
        images=len(labels),
        loss=(before.loss(), after.loss()),
        ece=(before.ece(), after.ece()),
    )


@torch.no_grad()
def divide(head: nn.Module, temperature: float) -> None:
    """Divide what a linear head answers by the temperature, in its weights: then whoever uses the network has it. AssertionError for
    another head."""
    assert isinstance(head, nn.Linear)
    for parameter in head.parameters():
        parameter.copy_(parameter.double() / temperature)


def moved(threshold: float, temperature: float) -> float:
    """What a threshold for the sigmoid of a logit becomes when the logit is divided by the temperature: the same labels are given."""
    if not 0 < threshold < 1:
        return threshold
    return 1 / (1 + math.exp(-math.log(threshold / (1 - threshold)) / temperature))


@dataclass(frozen=True, eq=False)
class _Answers:
    """Logits on labelled images, and how well their probabilities fit."""

    logits: Tensor
    """float64 `(n, classes)`."""
    labels: Tensor
    """int `(n,)` or `(n, k)`."""
    targets: Tensor
    """float64 `(n, classes)`, 1 for the image's classes."""
    shares: Tensor
    """float64 `(n,)`: how much each image counts; its sum is n."""

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> _Answers:
        logits, labels = logits.detach().cpu().double(), labels.cpu().long()
        classes = logits.shape[1]
        targets = (F.one_hot(labels, classes) if labels.ndim == 1 else multi_hot(labels, classes)).double()
        shares = torch.ones(len(labels), dtype=torch.float64)
        if weights is not None:
            shares = weights.cpu().double() * (len(labels) / float(weights.sum()))
        return cls(logits, labels, targets, shares)

    def part(self, which: Tensor) -> _Answers:
        return _Answers(self.logits[which], self.labels[which], self.targets[which], self.shares[which])

    def at(self, temperature: Tensor | float) -> _Answers:
        """These with their logits divided by a temperature, of all or `(n, 1)` of each."""
        return _Answers(self.logits / temperature, self.labels, self.targets, self.shares)

    @property
    def several(self) -> bool:
        return self.labels.ndim == 2

    def loss(self) -> float:
        """Mean over the images of the cross-entropy, nats; of sigmoids that of a class in the mean."""
        if self.several:
            losses = F.binary_cross_entropy_with_logits(self.logits, self.targets, reduction="none").mean(1)
        else:
            losses = -(self.logits.log_softmax(1) * self.targets).sum(1)
        return float(losses @ self.shares) / len(self.shares)

    def ece(self) -> float:
        """Calibration error, 0 to 1, of the answer of each image (`Classification.ece`), or of every class of each (`MultiLabel.ece`)."""
        found = (MultiLabel if self.several else Classification)(self.logits.shape[1])
        found.update(self.logits, self.labels)
        return found.ece

    def temperature(self, spread: float = PRIOR) -> float:
        """The one of greatest posterior probability: where the slope of its negative logarithm, over that of the temperature, is zero."""
        low, high = -RANGE, RANGE
        for _ in range(40):
            middle = (low + high) / 2
            scale = math.exp(-middle)
            probable = (scale * self.logits).sigmoid() if self.several else (scale * self.logits).softmax(1)
            gap = ((probable - self.targets) * self.logits).sum(1)
            if self.several:
                gap = gap / self.logits.shape[1]
            if middle / spread**2 - scale * float(gap @ self.shares) < 0:
                low = middle
            else:
                high = middle
        return math.exp((low + high) / 2)
