"""One training loop for all learned distributions: ``fit(family, data)``.

AdamW, whose rate rises over the first steps and falls along a cosine; an exponential moving average of the weights,
which is what is returned; a held-out part of the data, judged by the same loss with the same noise every time, of which
the best weights are kept. Steps run in compiled blocks on the driver: bars, Ctrl-C, and with a store a killed fit goes
on where it was, bit for bit. Training computes in 32 bits; the fitted distribution in the precision of what it is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from probgen.base.errors import DataError, MethodError, ProbgenWarning
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey
from probgen.generative.family import Family, Now, Solved, Spec, Training
from probgen.generative.learned import Learned
from probgen.nets.constant import trainable
from probgen.program.fingerprint import stable
from probgen.run.compiled import TRACING, compile_all
from probgen.run.progress import Progress, show_by_default
from probgen.run.store import Store
from probgen.run.training import train

__all__ = ["fit"]


class _State(NamedTuple):
    """Weights, what the optimiser remembers, their average, and the best average with its held-out loss."""

    weights: Any
    memory: Any
    average: Any
    best: Any
    best_loss: Array


class _Data(NamedTuple):
    """Data and their conditions."""

    x: Any
    condition: Any


def fit(
    family: Family,
    data: Any,
    condition: Any = None,
    *,
    training: Training | None = None,
    values: int | None = None,
    seed: int | jax.Array = 0,
    store: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Learned:
    """Fit a generative model to data.

    Args:
        family: What to fit, for example ``pg.generative.Flow()``.
        data: One datum per row, shape ``(n, *shape)``: an array, a DataFrame, or, for data larger than memory, an
            iterable of batches of one size (arrays, or pairs of arrays with conditions) that can be run through again;
            the first batch is held out, so they must come in the same order each time.
        condition: What each datum is given, shape ``(n, *condition)``; the result is then a distribution once
            ``given`` a condition.
        training: Steps, rates, batches; the family's own defaults if ``None``.
        values: Number of values of discrete data, ``0 .. values - 1``; the largest in the data plus one if ``None``.
        seed: An int or a typed JAX key.
        store: A folder ``*.zarr`` in which training is kept while it goes on; after a crash the same call goes on.
        progress: Show a progress bar. ``None``: at a terminal only.

    Returns:
        A NumPyro distribution; ``.history`` has the losses by step.

    Raises:
        DataError: If the data are empty, not finite, of the wrong type for the family, or do not fit the conditions.
        MethodError: If settings make no sense, or training diverged.
    """
    if not isinstance(family, Family):
        shown = family.__name__ if isinstance(family, type) else type(family).__name__
        raise MethodError(f"family must be a generative family, got {shown}. Write for example pg.generative.Flow().")
    training = family.training if training is None else training
    if not isinstance(training, Training):
        raise MethodError(f"training must be a Training, got {training!r}. Write pg.generative.Training(steps=5000).")
    key_build, key_adapt, key_split, key_train = jax.random.split(as_key(seed), 4)
    if isinstance(family, Solved):
        # Nothing is judged on held-out data, so none are held out.
        training = dataclasses.replace(training, validation=0.0)
    source = _source(data, condition, training, family)
    source.hold_out(key_split)
    spec = source.spec(values)
    family.check(spec)
    shown = show_by_default() if progress is None else progress
    with TRACING:
        net = eqx.filter_jit(family.build)(key_build, spec)
        net = family.adapt(key_adapt, net, *source.sample())
    if isinstance(family, Solved):
        return family.distribution(family.solve(key_train, net, *source.sample()), spec)
    kept = contextlib.nullcontext()
    if store is not None:
        parts = {"family": family, "training": training, "spec": spec, "data": source.contents()}
        identity = {name: stable(part) for name, part in parts.items()}
        kept = Store(store, identity | {"seed": str(jax.random.key_data(as_key(seed)).tolist())})
    with kept as opened:
        net, history = _descend(key_train, family, training, net, source, opened, shown)
    found = family.distribution(net, spec)
    found.history = history
    return found


# -- data ------------------------------------------------------------------------------------------------------------


def _source(data: Any, condition: Any, training: Training, family: Family) -> _Arrays | _Stream:
    if not isinstance(data, Iterable) or hasattr(data, "__array__") or isinstance(data, list | tuple):
        return _Arrays(data, condition, training, family)
    if condition is not None:
        raise DataError(
            "data come in batches, and so must their conditions. Let each batch be a pair (data, condition)."
        )
    if isinstance(family, Solved):
        raise DataError(
            f"data come in batches, and a {type(family).__name__} is fitted from all data at once. Give one array."
        )
    return _Stream(data, training, family)


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


class _Arrays:
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

    def validation(self) -> _Data | None:
        """The held-out data, in whole batches."""
        count = len(self.held) // self.batch * self.batch or len(self.held)
        return _Data(*self._at(self.held[:count])) if count else None

    def whole(self) -> _Data:
        """What batches are taken from."""
        return _Data(*self.sample())

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


class _Stream:
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

    def validation(self) -> _Data | None:
        """The first batch."""
        return _Data(*self.sample()) if self.training.validation else None

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

    def batches(self, key: PRNGKey, first: int, last: int) -> _Data:
        """The batches of these steps; a resumed fit runs through those before them."""
        if self._running is None or first < self._at:
            self._running, self._at = self._endless(), 0
        taken = list(itertools.islice(self._running, first - self._at, last - self._at))
        self._at = last
        shapes = {x.shape for x, _ in taken}
        if len(shapes) > 1:
            raise DataError(f"batches have different shapes: {sorted(shapes)}. Drop the last, smaller one.")
        return _Data(*jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *taken))

    def contents(self) -> Any:
        """What the data are: the first batch stands for all."""
        return self.first


# -- descent ---------------------------------------------------------------------------------------------------------


def _begin(training: Training, net: Any) -> _State:
    weights, _ = eqx.partition(net, trainable(net))
    # Distinct buffers: equal ones may not be donated twice.
    memory = training.optimiser().init(weights)
    return _State(weights, memory, weights, weights, jnp.asarray(jnp.inf, jnp.float32))


def _block(
    key: PRNGKey,
    family: Family,
    training: Training,
    net: Any,
    state: _State,
    whole: _Data | None,
    held: _Data | None,
    batches: Any,
    first: Array,
) -> tuple[_State, Array]:
    """Take the steps of a block; the trace has the loss of each, and the held-out loss at the last."""
    _, fixed = eqx.partition(net, trainable(net))
    optimiser = training.optimiser()
    key_steps, key_held = jax.random.split(key)

    def loss(weights: Any, key: PRNGKey, data: _Data, now: Now) -> Array:
        return family.loss(key, eqx.combine(weights, fixed), data.x, data.condition, now)

    def step(state: _State, at: tuple[Array, Any]) -> tuple[_State, Array]:
        i, batch = at
        data = batch if whole is None else jax.tree.map(lambda a: a[batch], whole)
        now = Now(i / training.steps, eqx.combine(state.average, fixed))
        value, gradient = jax.value_and_grad(loss)(state.weights, jax.random.fold_in(key_steps, i), data, now)
        good = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        updates, memory = optimiser.update(gradient, state.memory, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        decay = jnp.minimum(training.ema, (1 + i) / (10 + i))
        average = jax.tree.map(lambda a, w: (decay * a + (1 - decay) * w).astype(a.dtype), state.average, weights)
        moved = state._replace(weights=weights, memory=memory, average=average)
        # A step that is not a number is not taken; what it left behind would stay for good.
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state)
        return kept, jnp.where(good, value, jnp.nan).astype(jnp.float32)

    count = jax.tree.leaves(batches)[0].shape[0]
    state, losses = jax.lax.scan(step, state, (first + jnp.arange(count), batches))
    judged = jnp.asarray(jnp.nan, jnp.float32)
    if held is not None:
        now = Now(jnp.asarray((first + count) / training.steps), eqx.combine(state.average, fixed))
        rows = held.x.shape[0]
        size = training.batch if rows % training.batch == 0 else rows
        parts = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), held)
        keys = jax.random.split(key_held, rows // size)
        judged = jnp.mean(jax.lax.map(lambda a: loss(state.average, a[0], a[1], now), (keys, parts))).astype(
            jnp.float32
        )
    better = judged < state.best_loss if family.validated and held is not None else jnp.asarray(True)
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.average, state.best)
    state = state._replace(best=best, best_loss=jnp.where(better, judged, state.best_loss))
    return state, jnp.stack([losses, jnp.full(count, jnp.nan).at[-1].set(judged)], 1)


class _Descent:
    """A network in training (see ``Trainer``)."""

    def __init__(self, training: Training, patient: bool, begin: Callable[[], _State], advance: Callable) -> None:
        self.training, self.patient = training, patient
        self.begin, self._advance = begin, advance
        self.diverged, self.seen, self.best, self.since = False, 0, np.inf, 0

    @property
    def finished(self) -> bool:
        """See ``Trainer``."""
        patience = self.training.patience
        return self.diverged or (self.patient and patience is not None and self.since >= patience)

    def advance(self, state: _State, first: int, last: int) -> tuple[_State, np.ndarray]:
        """See ``Trainer``."""
        state, trace = self._advance(state, first, last)
        return state, np.asarray(trace)

    def judge(self, trace: np.ndarray) -> dict[str, float]:
        """See ``Trainer``."""
        losses, held = trace[:, 0], float(trace[-1, 1])
        self.seen += len(losses)
        self.diverged = not np.isfinite(losses).any()
        self.since = 0 if held < self.best else self.since + 1
        self.best = min(self.best, held)
        return {"loss": float(np.nanmean(losses)) if not self.diverged else np.nan, "held-out loss": held}


def _descend(
    key: PRNGKey,
    family: Family,
    training: Training,
    net: Any,
    source: _Arrays | _Stream,
    store: Store | None,
    shown: bool,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Train; the network with the best (or last) average, and the losses."""
    key_order, key_block = jax.random.split(key)
    whole, held = source.whole(), source.validation()
    begin = eqx.filter_jit(_begin)
    first_state = begin(training, net)

    def advance(state: _State, first: int, last: int) -> tuple[_State, Array]:
        batches = source.batches(key_order, first, last)
        call = (key_block, family, training, net, state, whole, held, batches, np.asarray(first, np.int32))
        (program,), _ = compile_all([(_block, call)])
        return program(*call)

    descent = _Descent(training, family.validated and held is not None, lambda: first_state, advance)
    template = jax.eval_shape(lambda: first_state)
    with Progress(["training"], training.steps, shown, "steps") as bar:
        trained = train(descent, template, training.steps, training.block, store, bar, "training")
    losses, judged = trained.trace.T
    if descent.patient and not descent.diverged and not np.isfinite(judged).any():
        raise MethodError(
            "no held-out loss is finite, so no weights are the best. Look for extreme values in the data, or set "
            "validation=0."
        )
    if descent.diverged:
        raise MethodError(
            f"training diverged: no loss is finite from step {len(losses) - training.block} on. Lower learning_rate "
            f"(now {training.learning_rate:g}), or look for extreme values in the data."
        )
    if trained.interrupted:
        warnings.warn(
            f"training was interrupted after {len(losses)} of {training.steps} steps; this is the best so far.",
            ProbgenWarning,
            stacklevel=4,
        )
    _, fixed = eqx.partition(net, trainable(net))
    return eqx.combine(trained.state.best, fixed), {"loss": losses, "validation": judged}
