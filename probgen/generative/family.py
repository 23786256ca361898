"""Families: what can be fitted to data. A family is a frozen configuration; with shapes it makes a network, with data
a loss, and with a trained network a distribution."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import optax
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.learned import Learned

__all__ = ["Family", "Now", "Solved", "Spec", "Training"]


class Spec(Part):
    """Shapes of the data.

    Attributes:
        shape: Shape of one datum.
        condition: Shape of one condition, ``None`` without conditions.
        values: Discrete data are ``0 .. values - 1``; 0 for real data.
        columns: Names of the entries, if the data had any.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    condition: tuple[int, ...] | None = eqx.field(static=True, default=None)
    values: int = eqx.field(static=True, default=0)
    columns: tuple[str, ...] = eqx.field(static=True, default=())

    def __check_init__(self) -> None:
        sizes = [*self.shape, *(self.condition or ()), self.values]
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise MethodError(f"the shapes of data are ints, got {self!r}. Give shape=(3,), say.")


class Now(NamedTuple):
    """Where training stands, for losses that depend on it.

    Attributes:
        progress: Share of the steps that were taken, from 0 to 1.
        average: The exponential moving average of the network.
    """

    progress: Array
    average: Any


class Training(eqx.Module):
    """How a network is trained.

    Attributes:
        steps: Steps of the optimiser.
        batch: Data per step.
        learning_rate: Its largest value.
        warmup: Share of the steps over which it rises.
        weight_decay: Of AdamW.
        clip: Largest norm of a gradient; longer ones are scaled down.
        ema: Decay of the moving average of the weights, per step.
        validation: Share of the data that is held out; 0 for none, then the last average is returned.
        block: Steps between two looks at the held-out data.
        patience: Looks without a better loss after which training stops; ``None`` to take all steps.
    """

    steps: int = eqx.field(static=True, default=5000)
    batch: int = eqx.field(static=True, default=256)
    learning_rate: float = eqx.field(static=True, default=1e-3)
    warmup: float = eqx.field(static=True, default=0.05)
    weight_decay: float = eqx.field(static=True, default=1e-4)
    clip: float = eqx.field(static=True, default=1.0)
    ema: float = eqx.field(static=True, default=0.999)
    validation: float = eqx.field(static=True, default=0.1)
    block: int = eqx.field(static=True, default=100)
    patience: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for name in ("steps", "batch", "block"):
            value = getattr(self, name)
            if not is_count(value):
                raise MethodError(f"Training got {name}={value!r}, expected an int of at least 1. Change {name}.")
        for name, most in (("warmup", 1.0), ("ema", 1.0), ("validation", 0.9)):
            if not 0.0 <= getattr(self, name) < most:
                raise MethodError(f"Training got {name}={getattr(self, name)!r}, expected 0 <= {name} < {most}.")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise MethodError(f"Training got {name}={getattr(self, name)!r}, expected a positive number.")
        if not self.weight_decay >= 0:
            raise MethodError(f"Training got weight_decay={self.weight_decay!r}, expected at least 0.")
        patience = self.patience
        if patience is not None and not is_count(patience):
            raise MethodError(f"Training got patience={patience!r}, expected an int of at least 1, or None.")

    def optimiser(self) -> optax.GradientTransformation:
        """The optax transformation."""
        rising = max(1, round(self.warmup * self.steps))
        rate = optax.warmup_cosine_decay_schedule(
            self.learning_rate / 100, self.learning_rate, rising, max(self.steps, rising + 1), self.learning_rate / 100
        )
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adamw(rate, weight_decay=self.weight_decay))


class Family(Part):
    """What is fitted. Settings are static fields with defaults; a trained part (a teacher, an encoder) is a field with
    arrays.

    A family of one's own is a subclass in a module that is imported before a saved model of it is loaded.
    """

    discrete: ClassVar[bool] = False
    """Whether the data are integers ``0 .. values - 1``."""
    training: ClassVar[Training] = Training()
    """How it is trained if nothing else is said."""
    validated: ClassVar[bool] = True
    """Whether losses at different steps can be compared; if not, the last average is kept rather than the best."""

    def check(self, spec: Spec) -> None:
        """Raise ``MethodError`` or ``DataError`` for settings that make no sense, or not for these data."""

    @abc.abstractmethod
    def build(self, key: PRNGKey, spec: Spec) -> Any:
        """An untrained network. Its structure and the shapes of its arrays follow from ``self`` and ``spec`` alone;
        arrays that are not weights are ``Constant``."""

    def adapt(self, key: PRNGKey, net: Any, x: Array, condition: Array | None) -> Any:
        """Set what is computed from the data before training (their mean and scale ...).

        Args:
            key: Randomness.
            net: From ``build``.
            x: Training data, shape ``(n, *spec.shape)``.
            condition: Their conditions, shape ``(n, *spec.condition)``.
        """
        return net

    @abc.abstractmethod
    def loss(self, key: PRNGKey, net: Any, x: Array, condition: Array | None, now: Now) -> Scalar:
        """The loss of a batch, whose expectation is minimised.

        Args:
            key: Randomness.
            net: The network.
            x: Data, shape ``(batch, *spec.shape)``.
            condition: Their conditions, or ``None``.
            now: Where training stands.
        """

    @abc.abstractmethod
    def distribution(self, net: Any, spec: Spec) -> Learned:
        """What a trained network is: the distribution that ``fit`` returns."""

    def inspect(self, model: Learned, x: Array, condition: Array | None) -> None:
        """Look at a fitted model before ``fit`` returns it, and warn of what can be seen to be wrong.

        Args:
            model: From ``distribution``.
            x: Data that were held out, or if there are none those of training; shape ``(n, *spec.shape)``.
            condition: Their conditions.
        """


class Solved(Family):
    """A family that is fitted by an algorithm of its own rather than by descent."""

    @abc.abstractmethod
    def solve(self, key: PRNGKey, net: Any, x: Array, condition: Array | None) -> Any:
        """The fitted network, from all data."""

    def loss(self, key: PRNGKey, net: Any, x: Array, condition: Array | None, now: Now) -> Scalar:
        """There is none."""
        raise NotImplementedError
