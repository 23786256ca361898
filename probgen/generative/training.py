"""One training loop for all learned distributions: ``fit(family, data)``.

AdamW, whose rate rises over the first steps and falls along a cosine; an exponential moving average of the weights,
which is what is returned; a held-out part of the data, judged by the same loss with the same noise every time, of which
the best weights are kept. Steps run in compiled blocks on the driver: bars, Ctrl-C, and with a store a killed fit goes
on where it was, bit for bit. Training computes in 32 bits; the fitted distribution in the precision of what it is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError, ProbgenWarning
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey
from probgen.generative.family import Family, Now, Solved, Training
from probgen.generative.learned import Learned
from probgen.generative.training_data import Arrays, Data, Stream, source_of
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
    if values is not None and not family.discrete:
        raise MethodError(
            f"values={values!r} is the number of values of discrete data, and {type(family).__name__} is a model of real "
            f"data. Leave values out."
        )
    if values is not None and not is_count(values):
        raise MethodError(f"values must be an int of at least 1, the number of values of the data, got {values!r}.")
    key_build, key_adapt, key_split, key_train = jax.random.split(as_key(seed), 4)
    if isinstance(family, Solved):
        # Nothing is judged on held-out data, so none are held out.
        training = dataclasses.replace(training, validation=0.0)
    source = source_of(data, condition, training, family)
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
    family.inspect(found, *(source.validation() or source.sample()))
    return found


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
    whole: Data | None,
    held: Data | None,
    batches: Any,
    first: Array,
) -> tuple[_State, Array]:
    """Take the steps of a block; the trace has the loss of each, and the held-out loss at the last."""
    _, fixed = eqx.partition(net, trainable(net))
    optimiser = training.optimiser()
    key_steps, key_held = jax.random.split(key)

    def loss(weights: Any, key: PRNGKey, data: Data, now: Now) -> Array:
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
    source: Arrays | Stream,
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
