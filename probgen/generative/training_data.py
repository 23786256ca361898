"""What networks are trained on: arrays in memory, or batches from elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import DataError
from probgen.base.typing import PRNGKey
from probgen.generative.family import Family, Solved, Spec, Training

__all__ = ["Arrays", "Data", "Stream", "source_of"]


class Data(NamedTuple):
    """Data and their conditions."""

    x: Any
    condition: Any


def source_of(data: Any, condition: Any, training: Training, family: Family) -> Arrays | Stream:
    """Data as training takes them.

    Raises:
        DataError: If they are not numbers, not finite, or do not fit the conditions or the family; or if they come in
            batches, and the family cannot take them.
    """
    if not isinstance(data, Iterable) or hasattr(data, "__array__") or isinstance(data, list | tuple):
        return Arrays(data, condition, training, family)
    if condition is not None:
        raise DataError(
            "data come in batches, and so must their conditions. Let each batch be a pair (data, condition)."
        )
    if isinstance(family, Solved):
        raise DataError(
            f"data come in batches, and a {type(family).__name__} is fitted from all data at once. Give one array."
        )
    return Stream(data, training, family)


def _checked(data: Any, family: Family, what: str) -> np.ndarray:
    """Rows of numbers, 32-bit."""
    array = np.asarray(data)
    if array.ndim == 0 or array.shape[0] == 0:
        raise DataError(f"{what} has shape {array.shape}, expected one datum per row. Give an array of shape (n, ...).")
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise DataError(f"{what} has the type {array.dtype}, expected numbers. Encode text and categories as numbers.")
    if not np.isfinite(array).all():
        rows = np.unique(np.argwhere(~np.isfinite(array))[:, 0])
        raise DataError(
            f"{what} has values that are not finite in {len(rows)} rows, first in row {rows[0]}. Drop or impute them."
        )
    if what == "data" and family.discrete:
        if array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):
            raise DataError(
                f"data has the type {array.dtype} with fractions, and {type(family).__name__} is a model of discrete "
                f"data. Give integers 0, 1, ..., or fit a model of real data."
            )
        if array.min() < 0:
            raise DataError(f"data has the value {array.min()}, expected 0, 1, .... Number the values from 0.")
        return array.astype(np.int32)
    with np.errstate(over="ignore"):
        short = array.astype(np.float32)
    if not np.isfinite(short).all():
        raise DataError(f"{what} has values beyond 3e38, and training computes in 32 bits. Scale them down.")
    return short


class Arrays:
    """Data in memory: batches are drawn without replacement, in another order each epoch."""

    def __init__(self, data: Any, condition: Any, training: Training, family: Family) -> None:
        self.columns = tuple(map(str, data.columns)) if hasattr(data, "columns") else ()
        self.x = _checked(data, family, "data")
        self.c = None if condition is None else _checked(condition, family, "condition")
        if self.c is not None and len(self.c) != len(self.x):
            raise DataError(f"condition has {len(self.c)} rows, but data has {len(self.x)}. Give one per datum.")
        self.training = training

    def spec(self, values: int | None) -> Spec:
        """Shapes of the data."""
        discrete = self.x.dtype.kind == "i"
        seen = int(self.x.max()) + 1 if discrete else 0
        if discrete and values is not None and values < seen:
            raise DataError(f"values={values}, but the data has the value {seen - 1}. Give at least values={seen}.")
        number = max(values or seen, 2) if discrete else 0
        return Spec(self.x.shape[1:], None if self.c is None else self.c.shape[1:], number, self.columns)

    def hold_out(self, key: PRNGKey) -> None:
        """Set a part aside for validation, at random."""
        order = np.asarray(jax.random.permutation(key, len(self.x)))
        held = round(self.training.validation * len(self.x))
        if len(self.x) - held < 1:
            raise DataError(f"data has {len(self.x)} rows, too few to hold some out. Give more, or set validation=0.")
        self.held, self.rows = order[:held], order[held:]
        self.batch = min(self.training.batch, len(self.rows))

    def sample(self) -> tuple[Array, Array | None]:
        """What networks are adapted to: the training data."""
        return self._at(self.rows)

    def _at(self, rows: np.ndarray) -> tuple[Array, Array | None]:
        return jnp.asarray(self.x[rows]), None if self.c is None else jnp.asarray(self.c[rows])

    def validation(self) -> Data | None:
        """The held-out data, in whole batches."""
        count = len(self.held) // self.batch * self.batch or len(self.held)
        return Data(*self._at(self.held[:count])) if count else None

    def whole(self) -> Data:
        """What batches are taken from."""
        return Data(*self.sample())

    def batches(self, key: PRNGKey, first: int, last: int) -> Array:
        """Rows for each of these steps, shape ``(last - first, batch)``; the same whatever was asked before."""
        per_epoch = len(self.rows) // self.batch
        steps = np.arange(first, last)
        epochs = {epoch: self._order(key, epoch) for epoch in np.unique(steps // per_epoch)}
        return jnp.asarray(np.stack([epochs[i // per_epoch][i % per_epoch] for i in steps]))

    def _order(self, key: PRNGKey, epoch: int) -> np.ndarray:
        bits = np.asarray(jax.random.key_data(jax.random.fold_in(key, epoch)))
        count = len(self.rows) // self.batch * self.batch
        order = np.random.default_rng(bits).permutation(len(self.rows))[:count]
        return order.reshape(-1, self.batch).astype(np.int32)

    def contents(self) -> Any:
        """What the data are."""
        return self.x, self.c


class Stream:
    """Data that come in batches. The first batch adapts the network and is the held-out one."""

    def __init__(self, data: Iterable[Any], training: Training, family: Family) -> None:
        if iter(data) is data:
            raise DataError(
                "data is an iterator that can be run through once. Give an object whose __iter__ begins anew, such as "
                "a data loader."
            )
        self.data, self.training, self.family = data, training, family
        batch = next(iter(data), None)
        if batch is None:
            raise DataError("data has no batches. Give an object whose __iter__ begins anew, such as a data loader.")
        self.first = self._read(batch)
        self._values = 0
        self._running: Iterator[Any] | None = None
        self._at = 0

    def _read(self, batch: Any) -> tuple[np.ndarray, np.ndarray | None]:
        x, c = batch if isinstance(batch, tuple) else (batch, None)
        x, c = _checked(x, self.family, "data"), None if c is None else _checked(c, self.family, "condition")
        if c is not None and len(c) != len(x):
            raise DataError(f"a batch has {len(c)} conditions and {len(x)} data. Give one per datum.")
        return x, c

    def _fitting(self, batch: tuple[np.ndarray, np.ndarray | None]) -> tuple[np.ndarray, np.ndarray | None]:
        """A batch, if it is one of the same data as the first."""
        here, first = ([None if a is None else a.shape[1:] for a in pair] for pair in (batch, self.first))
        if here != first:
            raise DataError(
                f"a batch has data and conditions of the shapes {here}, and the first one of {first}. Give all in one shape."
            )
        if self._values and batch[0].max() >= self._values:
            raise DataError(
                f"values={self._values}, but a batch has the value {batch[0].max()}. Give a larger values=."
            )
        return batch

    def spec(self, values: int | None) -> Spec:
        """Shapes of the data."""
        x, c = self.first
        if self.family.discrete and values is None:
            raise DataError("data come in batches, whose largest value is not known. Give values=, their number.")
        self._values = values or 0 if self.family.discrete else 0
        self._fitting(self.first)
        return Spec(x.shape[1:], None if c is None else c.shape[1:], values or 0)

    def hold_out(self, key: PRNGKey) -> None:
        """The first batch of every pass is held out."""

    def sample(self) -> tuple[Array, Array | None]:
        """The first batch."""
        return jax.tree.map(jnp.asarray, self.first)

    def validation(self) -> Data | None:
        """The first batch."""
        return Data(*self.sample()) if self.training.validation else None

    def whole(self) -> None:
        """Batches come as they are."""

    def _endless(self) -> Iterator[Any]:
        while True:
            count = 0
            for index, batch in enumerate(self.data):
                if index == 0 and self.training.validation:
                    self._check_held(self._read(batch))
                    continue
                count += 1
                yield self._fitting(self._read(batch))
            if not count:
                raise DataError("data has one batch, which is held out. Give more batches, or set validation=0.")

    def _check_held(self, batch: tuple[np.ndarray, np.ndarray | None]) -> None:
        (x, c), (first_x, first_c) = batch, self.first
        same = c is None if first_c is None else c is not None and np.array_equal(c, first_c)
        if not (same and np.array_equal(x, first_x)):
            raise DataError(
                "data come in another order each time, so the first batch cannot be held out. Shuffle them once, or set "
                "validation=0."
            )

    def batches(self, key: PRNGKey, first: int, last: int) -> Data:
        """The batches of these steps; a resumed fit runs through those before them."""
        if self._running is None or first < self._at:
            self._running, self._at = self._endless(), 0
        taken = list(itertools.islice(self._running, first - self._at, last - self._at))
        self._at = last
        shapes = {x.shape for x, _ in taken}
        if len(shapes) > 1:
            raise DataError(f"batches have different shapes: {sorted(shapes)}. Drop the last, smaller one.")
        return Data(*jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *taken))

    def contents(self) -> Any:
        """What the data are: the first batch stands for all."""
        return self.first
