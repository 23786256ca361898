r"""Diffusion models as classifiers: Bayes' rule with bounds of the log density.

.. math:: P(c \mid x) = \frac{P(c)\, p(x \mid c)}{\sum_{c'} P(c')\, p(x \mid c')} \approx
          \operatorname{softmax}_c \bigl(\log P(c) + B_c(x)\bigr)

with :math:`B_c(x)` an average of estimates of the variational bound given the class. All classes are judged with the same
noise: what is common to their errors cancels in the differences, and far fewer draws do. The error is the difference of
the gaps of the bounds, which is zero for exact denoisers and short steps.

Li, Prabhudesai, Duggal, Brown and Pathak (2023), "Your diffusion model is secretly a zero-shot classifier".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey

__all__ = ["Bounded", "class_log_probs"]


class Bounded(Protocol):
    """What has a bound of its log density: a ``Learned`` model that was given a class, a ``DenoisedDistribution``."""

    def bound(self, key: PRNGKey, value: Array) -> Array:
        """An unbiased estimate of a lower bound of the log density."""
        ...


def class_log_probs(
    key: PRNGKey, classes: Sequence[Bounded], x: Array, *, prior: Sequence[float] | None = None, draws: int = 16
) -> Array:
    """Log probabilities of the classes of data; estimates.

    Args:
        key: Randomness, which all classes share.
        classes: The model given each class, for example ``[model.given(c) for c in labels]``.
        x: Data, shape ``(..., *event_shape)``.
        prior: Probabilities of the classes; equal if left out.
        draws: Estimates of the bound that are averaged.

    Returns:
        Shape ``(..., classes)``.

    Raises:
        MethodError: If there are fewer than two classes, or the prior is none.
    """
    classes = tuple(classes)
    if len(classes) < 2:
        raise MethodError(f"there must be at least two classes, got {len(classes)}. Give the model of each class.")
    if not is_count(draws):
        raise MethodError(f"draws must be an int of at least 1, got {draws!r}. Use draws=16.")
    shares = np.full(len(classes), 1 / len(classes)) if prior is None else np.asarray(prior, float)
    if shares.shape != (len(classes),) or not (shares > 0).all() or not np.isclose(shares.sum(), 1, rtol=1e-6):
        raise MethodError(
            f"the prior must be {len(classes)} positive probabilities that sum to one, got {prior!r}. Normalise it."
        )
    keys = jax.random.split(key, draws)
    bounds = [jnp.mean(jax.lax.map(lambda k, of=of: of.bound(k, x), keys), 0) for of in classes]
    return jax.nn.log_softmax(jnp.stack(bounds, -1) + jnp.log(shares), -1)
