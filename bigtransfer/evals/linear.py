"""The linear probe: the best linear classifier on frozen features, solved exactly instead of trained; and big_vision's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigtransfer.errors import DataError, WeightsError
from bigtransfer.feed.augment import normalize
from bigtransfer.model import Network
from bigtransfer.ops.memory import keep_freed_memory

FEWSHOT_PENALTY = 2.0**10
"""The penalty of `fewshot_lsr` in big_vision's configurations for BiT and ViT."""

_GRID = 10.0 ** torch.linspace(-4, 1, 21, dtype=torch.float64)
"""Penalties tried, in units of the features' mean squared singular value."""

_ROWS = 8192
"""Images whose features are brought to float64 at a time."""

_JUDGED = 4096
"""The most images that penalty and temperature are chosen by."""

_DECOMPOSED = 3000
"""Gram matrices of at most this many rows are decomposed, which gives the solution for every penalty at once. Larger ones are solved for
one penalty, in a tenth of the time: the one that is best for so many of the images."""

_RANK = 1e-12
"""Squared singular values below this share of the largest are rounding errors."""

_FLOOR = 0.1
"""Standard deviations are taken to be at least this share of their root mean square: of few images, a feature that is nearly
always zero would otherwise be blown up without bound the first time it is not."""

_FEWSHOT_EPS = 1e-5
_FEWSHOT_INTERCEPT = 100.0

_WORSE = 1.1
"""What the loss of leave-one-out may be multiplied by where the regression is averaged with the discriminant, before it stays alone."""

MOST_CLASSES = 4_000
"""Of a discriminant, which solves with a number for every two of them."""

EVIDENCE = 0.1
"""What an image judged by the others counts for in the mean of several classifiers: their shares are as exp(EVIDENCE * the sum of their
log-likelihoods), pseudo-BMA (Geisser and Eddy 1979; Yao et al., arXiv 1704.02030) with a tenth of its trust, as in 20 images of a class
the classifier that is behind may still be the better one (benchmarks/results/side-by-side_cpu_2026-11-28.md)."""

_ONE_SHOT_TEMPERATURE = 0.1
"""Where the data cannot tell, because no class has two images: a score difference of 1 becomes 10 nats. A convention."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the features, of which a classifier is made for itself."""

    columns: Tensor
    """Their numbers, int64 `(p,)`."""
    scatter: Tensor | None = None
    """As `fit` has it, `(r, p)`."""


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier and how it was found."""

    head: nn.Linear
    """Raw features `(n, features)` -> logits, float32: takes the place of `Network.head`."""
    penalty: float
    """Ridge penalty on the weights for standardized features."""
    temperature: float
    """What the regression's scores are divided by to become logits."""
    discriminant_penalty: float | None
    """Ridge penalty of the discriminant that the regression is averaged with; None if it is alone."""
    leave_one_out_top1: float
    """Accuracy on the training images when each is judged by the classifier fitted without it; NaN if it cannot be known
    because no class has two images."""
    leave_one_out_loss: float
    """Their mean negative log-likelihood, nats, with the smoothed targets that penalty and temperature are chosen by; NaN likewise. Of a
    balanced classifier the mean over classes, each counted alike."""
    right: tuple[int, ...] = ()
    """Of each class, how many images were judged correctly so."""
    judged: tuple[int, ...] = ()
    """Of each class, how many were judged."""
    answers: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, 0), compare=False, repr=False)
    """The logits `(judged, classes)` of the classifier fitted without each of them, float64."""
    answered: Tensor = dataclasses.field(
        default_factory=lambda: torch.empty(0, dtype=torch.int64), compare=False, repr=False
    )
    """Their labels `(judged,)`."""
    scatter: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)
    """What it was fitted with."""


def extract_features(
    model: Network,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Pooled features float32 `(n, features)` and labels int64 `(n,)`, both on the CPU, of batches of (uint8 images, labels,
    indices) as `feed.loader.eval_batches` gives them. dtype: of the network's computation. Raises DataError if there is no
    image, WeightsError if the network gives what is no number."""
    features, labels = [], []
    training = model.training
    model.eval()
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    try:
        with torch.inference_mode():
            for images, batch_labels, _ in batches:
                features.append(model.features(normalize(images.to(device), dtype)).float().cpu())
                labels.append(batch_labels)
    finally:
        model.train(training)
    if not features:
        raise DataError("There is no image to extract features from.")
    # Outside inference_mode, so that the result is an ordinary tensor.
    found = torch.cat(features).clone()
    if not all(bool(part.isfinite().all()) for part in found.split(_ROWS)):
        raise WeightsError(
            f"The features of {model.card.name or 'the network'} are not finite numbers: its weights are damaged, or its training diverged."
        )
    return found, torch.cat(labels)


@torch.no_grad()
def fit(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    penalty: float | None = None,
    balanced: bool = False,
    discriminant: bool = False,
    scatter: Tensor | None = None,
    parts: Sequence[Part] = (),
) -> Probe:
    """Ridge regression of one-hot targets on standardized features, with a free intercept; all sums in float64.

    features float `(n, d)`, labels int `(n,)` in 0..num_classes-1, for any n and d; O(n d min(n, d)) operations and O(d min(n, d))
    memory beside the features. Where n and d are both above `_DECOMPOSED` the penalty is chosen by a part of the images. Raises
    DataError without images or with labels outside the classes.

    penalty: added to the diagonal of the features' Gram matrix. None chooses it, from a grid, together with the temperature
    (below). With `FEWSHOT_PENALTY` this is still not big_vision's few-shot protocol, which scales nearly constant features up much
    further: `fewshot_lsr` is.

    Regression scores are not logits: they are divided by a temperature. Penalty and temperature are those whose softmax of
    the leave-one-out scores has the least negative log-likelihood, with targets smoothed as in Platt (1999) so that perfect
    scores do not ask for infinite confidence. Leave-one-out (each image judged without itself) is exact in closed form, but
    for the standardization, which keeps using all images. Only images of classes with at least two can be judged so; where
    there are none, both values are conventions.

    balanced: every class counts the same, however many images it has: weighted least squares, in which the n images of a class weigh in
    inverse proportion to n, and all together as much as without weights; means, standard deviations and the negative
    log-likelihood are weighted alike. Leave-one-out is exact for these weights, which stay when an image is left out.

    discriminant: the classifier is the mean of the regression and of Fisher's linear discriminant (`_Discriminant`): of their logits, each
    with its own penalty and temperature, divided by one more temperature. It is as linear as they are. The discriminant knows that classes
    lie closer together in some directions than in others, the regression errs less where its assumptions fail; which is better depends on
    the task (benchmarks/results/discriminant_cpu_2026-11-26.md). With `penalty` both have it. The regression stays alone where a class has
    no image or no image can be judged, beyond `MOST_CLASSES`, and where leave-one-out finds the mean worse by more than `_WORSE`.

    scatter float `(r, d)`: how images of one class differ elsewhere, in directions S of standardized features, which a classifier is to
    heed the less: the penalty is on |w|^2 + |S w|^2, of the discriminant likewise. It is as if images had been seen before that differ so
    and are of one class (the within-class covariance of probabilistic linear discriminants, Ioffe 2006). None: nothing is known.

    parts: features that are of one kind, as those of one network of two. The classifier is a mean, as linear as they are, of the one on
    all features, which `penalty` and the like speak of, and of those on each part alone: of their logits, divided by one more temperature.
    On some tasks one part alone is better than all features are; each counts the less, the more leave-one-out says against it (`EVIDENCE`).
    """
    n, d = features.shape
    _check(labels, num_classes)
    labels = labels.to(features.device)
    rows = _Rows(features, labels, num_classes, balanced=balanced, scatter=scatter)
    counts = torch.bincount(labels, minlength=num_classes)
    discriminant = discriminant and num_classes <= MOST_CLASSES and bool(counts.min() > 0)
    own_penalty = penalty
    if penalty is None and min(n, d) > _DECOMPOSED:
        part = _spread(labels, _DECOMPOSED)
        chosen = fit(
            features[part], labels[part], num_classes, balanced=balanced, discriminant=discriminant, scatter=scatter
        )
        penalty, own_penalty = chosen.penalty, chosen.discriminant_penalty
        discriminant = own_penalty is not None
    # (A sample of) the images that can be judged by the others.
    judged = (counts[labels] > 1).nonzero()[:, 0]
    judged = judged[:: max(1, math.ceil(len(judged) / _JUDGED))]
    own = nn.functional.one_hot(labels[judged], num_classes).double()
    solver = (_Decomposed if min(n, d) <= _DECOMPOSED else _Factored)(rows, judged)
    weights, roots, totals, prior = rows.weights, rows.roots, rows.totals, rows.prior

    # The mean squared singular value; with a single image, or all alike, there is none.
    unit = float(solver.squares.mean()) if len(solver.squares) else 1.0
    grid = (unit * _GRID).tolist()
    candidates = grid if penalty is None else [penalty]
    own_candidates = [] if not discriminant else grid if own_penalty is None else [own_penalty]
    truth, counted = labels[judged], weights[judged] if balanced else None
    regression = _Judged(unit if penalty is None else penalty, _ONE_SHOT_TEMPERATURE, math.nan, own)
    fisher: _Judged | None = None
    if len(judged):
        regression = dataclasses.replace(regression, loss=math.inf)
        for candidate in dict.fromkeys([*candidates, *own_candidates]):
            predicted, leverage = solver.judge(candidate)
            if candidate in candidates:
                # Leave-one-out: residual / (1 - leverage).
                rest = (1 - leverage - weights[judged] / n).clamp_min(1e-9)[:, None]
                scores = own - (own - prior - predicted / roots[judged]) / rest
                regression = min(regression, _Judged.of(candidate, scores, truth, counted), key=_Judged.by_loss)
            if candidate in own_candidates:
                form = _Discriminant(totals, solver.between(candidate))
                scores = form.left_out(predicted / roots[judged], leverage / weights[judged], truth, weights[judged])
                found = _Judged.of(candidate, scores, truth, counted, form.prior(truth, None if balanced else own))
                fisher = found if fisher is None else min(fisher, found, key=_Judged.by_loss)

    weight, bias, answers, best = (
        solver.solve(regression.penalty) / regression.temperature,
        prior / regression.temperature,
        regression.answers,
        regression.loss,
    )
    if fisher is not None:
        both = _Judged.of(0.0, (regression.answers + fisher.answers) / 2, truth, counted)
        if both.loss <= _WORSE * regression.loss:
            solution = solver.solve(fisher.penalty)
            form = _Discriminant(totals, solver.between(fisher.penalty))
            own_weight, own_bias = form.classifier(solution, fisher.temperature)
            weight = (weight + own_weight) / (2 * both.temperature)
            bias = (bias + own_bias) / (2 * both.temperature)
            answers, best = both.answers, both.loss
        else:
            fisher = None
    weight = rows.weight(weight)
    head = nn.Linear(d, num_classes, device=features.device, dtype=torch.float32)
    head.weight.copy_(weight.T)
    head.bias.copy_(bias - rows.mean @ weight)
    if parts:
        alone = [
            fit(
                features[:, part.columns],
                labels,
                num_classes,
                balanced=balanced,
                discriminant=discriminant,
                scatter=part.scatter,
            )
            for part in parts
        ]
        answers, best = _average(head, answers, best, parts, alone, labels[judged], counted)
    hits = answers.argmax(1) == labels[judged]
    return Probe(
        head,
        float(regression.penalty),
        regression.temperature,
        None if fisher is None else float(fisher.penalty),
        float(hits.double().mean()) if len(judged) else math.nan,
        best,
        right=tuple(torch.bincount(labels[judged][hits], minlength=num_classes).tolist()),
        judged=tuple(torch.bincount(labels[judged], minlength=num_classes).tolist()),
        answers=answers.cpu(),
        answered=labels[judged].cpu(),
        scatter=scatter,
    )


def _average(
    head: nn.Linear,
    answers: Tensor,
    loss: float,
    parts: Sequence[Part],
    probes: Sequence[Probe],
    labels: Tensor,
    counted: Tensor | None,
) -> tuple[Tensor, float]:
    """Make of `head` its mean with the classifiers of parts of the features; the answers to the judged images, and their loss, of that.
    answers, loss: its own; labels, counted: of the judged images, and their weights."""
    losses = torch.tensor([loss, *(probe.leave_one_out_loss for probe in probes)], dtype=torch.float64)
    evidence = -EVIDENCE * len(answers) * losses.nan_to_num()  # NaN where nothing can be judged
    own, *shares = evidence.softmax(0).tolist()
    weight, bias, answers, temperature = own * head.weight.double(), own * head.bias.double(), own * answers, 1.0
    for part, probe, share in zip(parts, probes, shares, strict=True):
        weight[:, part.columns] += share * probe.head.weight.double()
        bias += share * probe.head.bias.double()
        answers += share * probe.answers.to(answers.device)
    if len(answers):
        mean = _Judged.of(0.0, answers, labels, counted)
        temperature, answers, loss = mean.temperature, mean.answers, mean.loss
    head.weight.copy_(weight / temperature)
    head.bias.copy_(bias / temperature)
    return answers, loss


class _Shrunk:
    """M^(1/2), for M = (I + S^T S)^-1 of a scatter S `(r, d)`: a plain penalty on v, where w = M^(1/2) v, is one on |w|^2 + |S w|^2, and
    X w = X M^(1/2) v. It is I less a matrix of rank r at most, block by block where S is block-diagonal, as that of several sizes and
    networks is."""

    def __init__(self, scatter: Tensor | None, like: Tensor) -> None:
        self._blocks: list[tuple[slice, Tensor, Tensor]] = []
        for columns, block in () if scatter is None else _blocks(scatter.to(like.device, torch.float64)):
            squares, v = torch.linalg.eigh(block @ block.T)
            kept = squares > _RANK * squares.max()
            squares, v = squares[kept], v[:, kept]
            self._blocks.append((columns, block.T @ (v / squares.sqrt()), 1 - (1 + squares).rsqrt()))

    def __call__(self, rows: Tensor) -> Tensor:
        """Of rows float64 `(n, d)`."""
        if not self._blocks:
            return rows
        found = rows.clone()
        for columns, turn, less in self._blocks:
            part = rows[:, columns]
            found[:, columns] -= ((part @ turn) * less) @ turn.T
        return found


def _blocks(matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Columns and contents of each block of a block-diagonal matrix, as many and as small as there are; rows of zeros are left out."""
    there = (matrix != 0).byte()
    rows = there.any(1).nonzero()[:, 0]
    first, last = there[rows].argmax(1), matrix.shape[1] - there[rows].flip(1).argmax(1)
    block: list[int] = []
    begin = end = 0
    for start, stop, row in sorted(zip(first.tolist(), last.tolist(), rows.tolist(), strict=True)):
        if block and start >= end:
            yield slice(begin, end), matrix[block, begin:end]
            block = []
        begin, end = (begin, max(end, stop)) if block else (start, stop)
        block.append(row)
    if block:
        yield slice(begin, end), matrix[block, begin:end]


class _Rows:
    """Standardized features, shrunk along the scatter, and centred one-hot targets, float64, a part of the images at a time; each row times
    the root of its image's weight, so that plain least squares of them is the weighted one."""

    def __init__(
        self, features: Tensor, labels: Tensor, num_classes: int, *, balanced: bool, scatter: Tensor | None
    ) -> None:
        self._features, self._labels, self._classes, self._balanced = features, labels, num_classes, balanced
        n = len(features)
        self.weights = torch.ones(n, dtype=torch.float64, device=features.device)
        if balanced:
            counts = torch.bincount(labels, minlength=num_classes)
            self.weights = (n / (counts.count_nonzero() * counts.double()))[labels]
        self.roots = self.weights.sqrt()[:, None]
        self.totals = torch.bincount(labels, self.weights, num_classes)
        """Of each class, the sum of its images' weights."""
        self.prior = self.totals / n
        """The mean of the targets."""
        self.mean, self._scale = standardization(features, self.weights if balanced else None)
        self._shrunk = _Shrunk(scatter, features)

    @property
    def shape(self) -> tuple[int, int]:
        n, d = self._features.shape
        return n, d

    def features(self, part: slice | Tensor = slice(None)) -> Tensor:
        x = self._shrunk((self._features[part].double() - self.mean) * self._scale)
        return x * self.roots[part] if self._balanced else x

    def weight(self, weight: Tensor) -> Tensor:
        """That of raw features, less their mean, for a weight `(d, classes)` of these."""
        return self._shrunk(weight.T).T * self._scale[:, None]

    def targets(self, part: slice | Tensor = slice(None)) -> Tensor:
        return (nn.functional.one_hot(self._labels[part], self._classes).double() - self.prior) * self.roots[part]

    def products(self) -> tuple[Tensor, Tensor]:
        """X^T Y `(d, classes)`, and the smaller of the two Gram matrices."""
        n, d = self.shape
        cross = torch.zeros(d, self._classes, dtype=torch.float64, device=self._features.device)
        gram = torch.zeros(d if n > d else 0, d, dtype=torch.float64, device=self._features.device)
        for start in range(0, n, _ROWS):
            part = slice(start, start + _ROWS)
            x = self.features(part)
            cross += x.T @ self.targets(part)
            if n > d:
                gram += x.T @ x
        if n <= d:
            x = self.features()
            gram = x @ x.T
        return cross, gram


class _Decomposed:
    """Ridge regression for any penalty, out of one decomposition of the Gram matrix: X = U S V^T, `_basis` = V / S, so that U = X basis
    and W = basis (S W')."""

    def __init__(self, rows: _Rows, judged: Tensor) -> None:
        """judged: images that `judge` is about."""
        n, d = rows.shape
        cross, gram = rows.products()
        self.squares, v = torch.linalg.eigh(gram)
        kept = self.squares > _RANK * self.squares.max()
        self.squares, v = self.squares[kept], v[:, kept]
        self._basis = v / self.squares.sqrt() if n > d else rows.features().T @ (v / self.squares)
        self._projected, self._u = self._basis.T @ cross, rows.features(judged) @ self._basis  # U^T Y, U

    def solve(self, penalty: float) -> Tensor:
        """W `(d, classes)`."""
        return self._basis @ (self._shrink(penalty)[:, None] * self._projected)

    def judge(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Of each judged image (its row times the root of its weight) its scores X W `(judged, classes)` and its leverage `(judged,)`, both
        without the intercept."""
        shrink = self._shrink(penalty)
        return self._u @ (shrink[:, None] * self._projected), self._u.square() @ shrink

    def between(self, penalty: float) -> Tensor:
        """W^T X^T Y `(classes, classes)`."""
        return (self._shrink(penalty)[:, None] * self._projected).T @ self._projected

    def _shrink(self, penalty: float) -> Tensor:
        return self.squares / (self.squares + penalty)


class _Factored:
    """The same for one penalty at a time, by Cholesky's decomposition: a tenth of the time for one."""

    def __init__(self, rows: _Rows, judged: Tensor) -> None:
        self._rows, self._judged = rows, judged
        self._cross, self._gram = rows.products()
        self.squares = self._gram.diagonal()
        self._solved: dict[float, tuple[Tensor, Tensor]] = {}

    def solve(self, penalty: float) -> Tensor:
        return self._solve(penalty)[0]

    def judge(self, penalty: float) -> tuple[Tensor, Tensor]:
        solution, leverage = self._solve(penalty)
        return self._rows.features(self._judged) @ solution, leverage

    def between(self, penalty: float) -> Tensor:
        return self.solve(penalty).T @ self._cross

    def _solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """The solution and the leverages."""
        if penalty not in self._solved:
            n, d = self._rows.shape
            diagonal = torch.eye(len(self._gram), dtype=self._gram.dtype, device=self._gram.device)
            factor = torch.linalg.cholesky(self._gram + penalty * diagonal)
            if n > d:
                x = self._rows.features(self._judged)
                leverage = torch.linalg.solve_triangular(factor, x.T, upper=False).square().sum(0)
                self._solved[penalty] = torch.cholesky_solve(self._cross, factor), leverage
            else:
                inverse = torch.cholesky_inverse(factor)
                solution = self._rows.features().T @ (inverse @ self._rows.targets())
                self._solved[penalty] = solution, 1 - penalty * inverse.diagonal()[self._judged]
        return self._solved[penalty]


@dataclass(frozen=True)
class _Judged:
    """A classifier by what it says of images that it was fitted without."""

    penalty: float
    temperature: float
    """That its scores are divided by."""
    loss: float
    """At this temperature, nats, as `best_temperature` has it."""
    answers: Tensor
    """Logits float64 `(judged, classes)`."""

    @classmethod
    def of(
        cls, penalty: float, scores: Tensor, labels: Tensor, weights: Tensor | None, prior: Tensor | None = None
    ) -> _Judged:
        """At the best temperature; arguments as of `best_temperature`."""
        temperature, loss = best_temperature(scores, labels, weights, prior)
        answers = scores / temperature
        return cls(penalty, temperature, loss, answers if prior is None else answers + prior)

    def by_loss(self) -> float:
        return self.loss


class _Discriminant:
    """Fisher's linear discriminant with a ridge penalty on the scatter within the classes, out of the regression's solution with the same
    penalty: an image belongs to the class whose mean is nearest to it in the metric P = (scatter within + penalty I)^-1.

    With the means M of the classes (centred), their weights N and T = (X^T X + penalty I)^-1, the scatter within is X^T X - M N M^T, and
    by Woodbury's identity P = T + T M K M^T T, K = (N^-1 - M^T T M)^-1. As X^T Y = M N, the regression's solution is W = T M N, and
    whatever else is needed is a matrix of classes by classes (Hastie, Tibshirani and Buja 1994 have the relation of the two).
    """

    def __init__(self, totals: Tensor, between: Tensor) -> None:
        """totals float64 `(classes,)`, above 0: sum of the weights of each class's images. between `(classes, classes)`: W^T X^T Y."""
        self._totals = totals
        share = 1 / totals
        self._k = torch.linalg.inv(share.diag() - share[:, None] * between * share)
        self._turn = share[:, None] * self._k * share  # P M = W N^-1 K N^-1
        self._means = self._turn - share.diag()  # M^T P M

    def prior(self, labels: Tensor, own: Tensor | None) -> Tensor:
        """Logarithms of what the classes weigh, `(n, classes)`, for images with these labels; own `(n, classes)`: what each image weighs in
        its class, and is to be left out; None: nothing."""
        weights = self._totals.expand(len(labels), -1)
        return (weights if own is None else weights - own).log()

    def left_out(self, scores: Tensor, leverage: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Half the squared distance of each image to each mean, negative, `(n, classes)`, both the mean of its class and the scatter
        without it: a change of rank one. scores `(n, classes)`: x^T W; leverage `(n,)`: x^T T x; both without weights. weights `(n,)`."""
        toward = scores / self._totals  # M^T T x
        turned = toward @ self._k
        norm = leverage + (toward * turned).sum(1)  # x^T P x
        toward = turned / self._totals  # M^T P x
        distances = norm[:, None] - 2 * toward + self._means.diagonal()
        each, totals = torch.arange(len(labels), device=labels.device), self._totals[labels]
        own = distances[each, labels]
        grows = totals / (totals - weights)  # the distance from the mean, where that is without the image
        rest = (1 - weights * grows * own).clamp_min(1e-9)
        across = (
            (norm - toward[each, labels])[:, None] - toward + self._means[labels]
        )  # between x - its mean and x - a mean
        distances = distances + (weights * grows / rest)[:, None] * across.square()
        distances[each, labels] = grows.square() * own / rest
        return -0.5 * distances

    def classifier(self, solution: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Weight `(d, classes)` and bias for standardized features; solution: W."""
        return solution @ self._turn / temperature, self._totals.log() - self._means.diagonal() / (2 * temperature)


@torch.no_grad()
def left_out(
    features: Tensor, labels: Tensor, num_classes: int, probe: Probe, *, groups: Tensor | None = None
) -> Tensor:
    """What is said of each image by the regression fitted, as `probe` was, without it and without the images of its group: logits float64
    `(n, classes)`, those of a class that has no other image the less. (A discriminant that it is averaged with is left aside.)

    features, labels, num_classes: what `fit` made `probe` of, unbalanced. groups int `(n,)`: images of one number are left out together,
    such as copies of one picture, which would tell each other's label; None: each image alone.

    Exact in closed form, but for standardization and penalty, which keep using all images: with the hat matrix H of all, the residuals of a
    group G fitted without it are (I - H_GG)^-1 of those fitted with it. O(n d min(n, d)) operations.
    """
    n, d = features.shape
    _check(labels, num_classes)
    labels = labels.to(features.device)
    mean, scale = standardization(features)
    x = _Shrunk(probe.scatter, features)((features.double() - mean) * scale)
    own = nn.functional.one_hot(labels, num_classes).double()
    centred = own - own.mean(0)
    # The hat matrix without the intercept is X (X^T X + penalty I)^-1 X^T = root root^T = I - penalty (X X^T + penalty I)^-1.
    if n > d:
        factor = torch.linalg.cholesky(x.T @ x + probe.penalty * torch.eye(d, dtype=x.dtype, device=x.device))
        root = torch.linalg.solve_triangular(factor, x.T, upper=False).T
        fitted, leverage = root @ (root.T @ centred), root.square().sum(1)

        def block(rows: Tensor) -> Tensor:
            return root[rows] @ root[rows].T
    else:
        hat = torch.linalg.cholesky(x @ x.T + probe.penalty * torch.eye(n, dtype=x.dtype, device=x.device))
        hat = -probe.penalty * torch.cholesky_inverse(hat)
        hat.diagonal().add_(1)
        fitted, leverage = hat @ centred, hat.diagonal()

        def block(rows: Tensor) -> Tensor:
            return hat[rows][:, rows]

    residuals = centred - fitted
    scores = own - residuals / (1 - leverage - 1 / n).clamp_min(1e-9)[:, None]
    if groups is not None:
        order = groups.argsort(stable=True)
        _, sizes = groups[order].unique_consecutive(return_counts=True)
        for rows in order.split(sizes.tolist()):
            if len(rows) == n:  # nothing is left to judge them by
                scores[rows] = own.mean(0)
            elif len(rows) > 1:
                rest = torch.eye(len(rows), dtype=x.dtype, device=x.device) - block(rows) - 1 / n
                scores[rows] = own[rows] - torch.linalg.solve(rest, residuals[rows])
    return scores / probe.temperature


class FewshotClassifier(nn.Module):
    """Raw features `(n, d)` -> scores float64 `(n, classes)`, as `fewshot_lsr` fitted them."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, mean: Tensor, std: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        for name, value in {"mean": mean, "std": std, "weight": weight, "bias": bias}.items():
            self.register_buffer(name, value)

    def forward(self, features: Tensor) -> Tensor:
        # Not folded into one linear layer: where a feature hardly varies its scale is up to 1e5, and float32 would lose the rest.
        return ((features.double() - self.mean) / self.std) @ self.weight + self.bias


@torch.no_grad()
def fewshot_lsr(
    features: Tensor, labels: Tensor, num_classes: int, *, penalty: float = FEWSHOT_PENALTY
) -> FewshotClassifier:
    """The linear few-shot evaluation that big_vision monitors pre-training with, exactly, but in float64.

    Least squares of targets -1 and +1 on features scaled to mean 0 and divided by their population standard deviation + 1e-5, with a
    further feature of 100 for the intercept; `penalty` is added to the diagonal of the Gram matrix, the intercept's place too.
    features float `(n, d)`, labels int `(n,)` in 0..num_classes-1. Raises DataError without images or with labels outside the classes.
    Source: google-research/big_vision, evaluators/fewshot_lsr.py.
    """
    _check(labels, num_classes)
    x = features.double()
    mean, std = x.mean(0), x.std(0, correction=0) + _FEWSHOT_EPS
    x = torch.cat([(x - mean) / std, torch.full_like(x[:, :1], _FEWSHOT_INTERCEPT)], dim=1)
    targets = 2 * nn.functional.one_hot(labels.to(x.device), num_classes).double() - 1
    n, d = x.shape
    if n < d:  # the same solution from the smaller of the two Gram matrices
        weight = x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(n, dtype=x.dtype, device=x.device), targets)
    else:
        weight = torch.linalg.solve(x.T @ x + penalty * torch.eye(d, dtype=x.dtype, device=x.device), x.T @ targets)
    return FewshotClassifier(mean, std, weight[:-1], _FEWSHOT_INTERCEPT * weight[-1])


def _check(labels: Tensor, num_classes: int) -> None:
    if len(labels) == 0:
        raise DataError("A linear classifier needs at least one image.")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise DataError(f"Labels {int(labels.min())} to {int(labels.max())} do not fit {num_classes} classes.")


def _spread(labels: Tensor, count: int) -> Tensor:
    """Places of `count` of the images, of every class in proportion, in their order."""
    by_class = labels.argsort(stable=True)
    places = torch.linspace(0, len(labels) - 1, count, dtype=torch.float64, device=labels.device).round().long()
    return by_class[places].sort().values


def standardization(features: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation (population, at least `_FLOOR`) of each feature, float64 `(d,)`; weights float64 `(n,)`, of sum n."""
    chunks = features.split(_ROWS)
    shares = torch.ones(len(features)) if weights is None else weights
    parts = [share.double() for share in shares.to(features.device).split(_ROWS)]
    mean = torch.stack([part @ chunk.double() for part, chunk in zip(parts, chunks, strict=True)]).sum(0) / len(
        features
    )
    squares = [part @ (chunk.double() - mean).square() for part, chunk in zip(parts, chunks, strict=True)]
    variance = torch.stack(squares).sum(0) / len(features)
    # Images that are all alike differ by rounding only, which must not be scaled up either.
    floor = torch.maximum(_FLOOR * variance.mean().sqrt(), torch.finfo(torch.float32).eps * mean.square().mean().sqrt())
    std = torch.maximum(variance.sqrt(), floor)
    return mean, 1 / torch.where(std > 0, std, 1.0)


def best_temperature(
    scores: Tensor, labels: Tensor, weights: Tensor | None = None, prior: Tensor | None = None
) -> tuple[float, float]:
    """The temperature, 1e-4 to 100, at which softmax(scores / temperature) has the least cross-entropy with the labels, and that
    cross-entropy, nats. scores float `(n, classes)`, labels int `(n,)`, smoothed as in Platt (1999): of n images the true class gets
    1 - 1 / (n + 2). weights float `(n,)`: how much each image counts; None: all the same. prior float `(n, classes)`: added to the scores
    after the division; None: nothing.

    In b = 1 / temperature the cross-entropy is convex: its slope, mean of (expected - target score), has one root."""
    smooth = 1 / (len(labels) + 2)
    shares = torch.full_like(scores[:, 0], 1 / len(labels)) if weights is None else weights / weights.sum()

    def aimed_at(values: Tensor) -> Tensor:
        return (1 - smooth) * values.gather(1, labels[:, None])[:, 0] + smooth * values.mean(1)

    target = aimed_at(scores)
    low, high = 1e-2, 1e4
    middle = 1.0
    for _ in range(24):
        logits = middle * scores if prior is None else middle * scores + prior
        expected = (logits.softmax(1) * scores).sum(1)
        if float(shares @ (expected - target)) < 0:
            low = middle
        else:
            high = middle
        middle = math.sqrt(low * high)
    logits = middle * scores if prior is None else middle * scores + prior
    error = torch.logsumexp(logits, 1) - aimed_at(logits)
    return 1 / middle, float(shares @ error)
