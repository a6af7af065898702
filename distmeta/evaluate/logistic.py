"""Logistic regression on few examples of many features: many fits at once, in the span of the examples.

The optimum is that of scikit-learn's `LogisticRegression`, which spends on a few-shot episode more time on its checks
than on its numbers, and for many classes works on classes x features coefficients where classes x examples would do.
"""

import torch
from torch import Tensor

TOLERANCE = 3e-4
"""The length of the gradient of the weights, divided by `c`, at which a fit ends."""
MOST_STEPS, MOST_INNER_STEPS, MOST_HALVINGS = 50, 60, 20


def fit(products: Tensor, labels: Tensor, n_way: int, c: float) -> tuple[Tensor, Tensor]:
    """Fits a multinomial logistic regression to each of several sets of examples.

    With X the examples as rows, the weights W are X^T A. It minimises c * the sum of the cross-entropies of softmax(X W
    + b), and |W|^2 / 2, over A and b (b is not penalised), by Newton's method with conjugate gradients (Nocedal and
    Wright 2006, algorithm 7.1, with a line search). Of two classes it is scikit-learn's logistic regression of one
    vector w = W_1 - W_0, whose penalty |w|^2 / 2 is twice that of the two. All that is asked for of X is X X^T, and a
    step costs one product by it. As the penalty is strongly convex, W is no farther from the optimum's than the
    gradient's length, `TOLERANCE` * c, and by no more can a score of a text of length 1 be wrong.

    Args:
        products: X X^T, (fits, examples, examples), float.
        labels: (fits, examples), int64, from 0 to n_way - 1, each at least once.
        n_way: number of classes.
        c: inverse strength of the penalty.

    Returns:
        A (fits, examples, n_way) and b (fits, n_way): the scores of texts Q are (Q X^T) A + b.
    """
    c = c / 2 if n_way == 2 else c
    targets = torch.nn.functional.one_hot(labels, n_way).to(products.dtype)
    b = torch.zeros_like(targets[:, 0])
    a, penalised, loss = _start(products, targets, b, c)
    for _ in range(MOST_STEPS):
        probabilities = (penalised + b[:, None]).softmax(2)
        wrong = c * (probabilities - targets)
        gradient = _Vector(wrong + a, wrong.sum(1), products)
        length = gradient.square().sqrt()
        is_left = length > TOLERANCE * c
        if not bool(is_left.any()):
            break
        step = _newton_step(gradient, is_left, probabilities, c, products)
        slope = gradient.dot(step)
        size = torch.ones_like(length)
        for _ in range(MOST_HALVINGS):
            t = size[:, None, None]
            tried = _loss(penalised + t * step.times, a + t * step.a, b + size[:, None] * step.b, targets, c)
            # As near to the optimum as floating point tells, a step may seem to lead up.
            too_far = tried > loss + 1e-4 * size * slope + 1e-5 * loss.abs()
            if not bool(too_far.any()):
                break
            size = torch.where(too_far, size / 2, size)
        t = size[:, None, None]
        a, b, penalised = a + t * step.a, b + size[:, None] * step.b, penalised + t * step.times
        loss = tried
    return a, b


def _start(products: Tensor, targets: Tensor, b: Tensor, c: float) -> tuple[Tensor, Tensor, Tensor]:
    """A, X X^T A, and the loss of the best start along the first gradient: far from the optimum Newton's steps are
    short."""
    down = targets - 1 / targets.shape[2]
    penalised = products @ down
    sizes = c / 2.0 ** torch.arange(8, dtype=products.dtype, device=products.device)
    losses = torch.stack([_loss(size * penalised, size * down, b, targets, c) for size in sizes])
    best = losses.min(0)
    size = sizes[best.indices][:, None, None]
    return size * down, size * penalised, best.values


class _Vector:
    """A direction of the weights X^T a and of b, with X X^T a, so that inner products of weights cost no product."""

    def __init__(self, a: Tensor, b: Tensor, products: Tensor | None = None, times: Tensor | None = None) -> None:
        self.a, self.b = a, b
        if times is None:
            assert products is not None
            times = products @ a
        self.times = times

    def dot(self, other: "_Vector") -> Tensor:
        """The inner product of each fit, (fits,)."""
        return (self.times * other.a).sum((1, 2)) + (self.b * other.b).sum(1)

    def square(self) -> Tensor:
        """The square of the length, which rounding must not make negative, (fits,)."""
        return self.dot(self).clamp_min(0)

    def plus(self, factor: Tensor, other: "_Vector") -> "_Vector":
        """This one and `factor` times another."""
        each = factor[:, None, None]
        return _Vector(
            self.a + each * other.a, self.b + factor[:, None] * other.b, times=self.times + each * other.times
        )


def _newton_step(gradient: _Vector, is_left: Tensor, probabilities: Tensor, c: float, products: Tensor) -> _Vector:
    """The direction d with (second derivative) d = -gradient, as exactly as it is worth; 0 of what is not left."""
    zero = torch.zeros_like
    direction = _Vector(zero(gradient.a), zero(gradient.b), times=zero(gradient.times))
    residual = direction.plus(-torch.ones_like(gradient.b[:, 0]), gradient)
    search = residual
    before = residual.square()
    enough = before * (before.sqrt() / c).clamp(0.01, 0.25).square()
    for _ in range(MOST_INNER_STEPS):
        scores = search.times + search.b[:, None]
        curved = c * probabilities * (scores - (probabilities * scores).sum(2, keepdim=True))
        product = _Vector(curved + search.a, curved.sum(1), products)
        curvature = search.dot(product)
        is_left = is_left & (curvature > 0)
        along = torch.where(is_left, before / curvature.clamp_min(1e-30), 0.0)
        direction = direction.plus(along, search)
        residual = residual.plus(-along, product)
        after = residual.square()
        is_left = is_left & (after > enough)
        if not bool(is_left.any()):
            break
        search = residual.plus(torch.where(is_left, after / before.clamp_min(1e-30), 0.0), search)
        before = after
    return direction


def _loss(penalised: Tensor, a: Tensor, b: Tensor, targets: Tensor, c: float) -> Tensor:
    scores = penalised + b[:, None]
    entropy = scores.logsumexp(2) - (scores * targets).sum(2)
    return c * entropy.sum(1) + (penalised * a).sum((1, 2)) / 2
