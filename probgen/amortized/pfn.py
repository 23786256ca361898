r"""Prior-data fitted networks: the posterior predictive of a program in one pass of a network, without inference.

For a program with rows (inputs :math:`x_i`, outcomes :math:`y_i`) that are exchangeable given their inputs, the law of a new
outcome given a context :math:`D` of rows, :math:`p(y_* \mid x_*, D)`, with all latent sites integrated out, is learned
from data sets that the program draws (``row_predictor``). It holds for contexts of any size up to that of the program.

Such a predictive also implies a posterior (Fong, Holmes and Walker 2023, "Martingale posterior distributions"; Lee et al.
2023, "Martingale posterior neural processes"): draw pseudo-outcomes one after another, each from the predictive given the
context and those before it; what is computed from context and pseudo-outcomes together then varies as the posterior says,

.. math:: \operatorname{Var}(E[f_* \mid D, D']) = \operatorname{Var}(f_* \mid D) - E \operatorname{Var}(f_* \mid D, D'),

all of it once the pseudo-context :math:`D'` is so large that it leaves nothing uncertain.

Both are as good as the training. For a Gaussian process with up to 19 rows of context, 6000 steps of 64 data sets left a gap
of 0.004 nats per point to the exact predictive (standard error 0.002), and spreads within 8 % of what they should be.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from probgen.amortized.bar_distribution import BarDistribution
from probgen.amortized.reading import Field
from probgen.amortized.row_predictor import LearnedRowPredictor, RowPredictor
from probgen.amortized.simulations import Design
from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError, ModelError, StoreError, suggestion
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey
from probgen.generative import saving
from probgen.generative.family import Training
from probgen.generative.training import fit
from probgen.infer.replayed import check_drawable
from probgen.program.model import Model
from probgen.program.simulate import trace_forward
from probgen.program.sites import Kind
from probgen.run.compiled import compile_all
from probgen.run.progress import Progress, show_by_default

__all__ = ["PFN", "Predictor", "predictor"]

_CHUNK = 1024

type Inputs = ArrayLike | Mapping[str, ArrayLike]
"""Inputs of rows: one array with rows first, or by argument of the program."""


class PFN(eqx.Module):
    """A prior-data fitted network (Mueller et al. 2022): a transformer over rows that predicts by a histogram.

    Attributes:
        bars: Number of bars of the predictive density.
        width: Features of a row.
        depth: Blocks of attention.
        heads: Heads of attention; divides ``width``.
        training: Steps, rates, batches (of data sets); its own defaults if ``None``.
    """

    bars: int = eqx.field(static=True, default=200)
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=4)
    heads: int = eqx.field(static=True, default=4)
    training: Training | None = eqx.field(static=True, default=None)


class Predictor:
    """The posterior predictive of a program, learned.

    Args:
        law: What was trained.

    Attributes:
        law: What was trained.
        rows: Rows of a data set in training; a context has fewer.
    """

    def __init__(self, law: LearnedRowPredictor) -> None:
        self.law = law
        self.rows = law.spec.shape[0]

    def __repr__(self) -> str:
        inputs = ", ".join(field.name for field in self.law.family.inputs)
        return f"Predictor(inputs={inputs}, contexts of up to {self.rows - 1} rows)"

    def given(self, x: Inputs, y: ArrayLike, x_new: Inputs) -> BarDistribution:
        """The law of the outcomes of new rows, each by itself, given a context.

        Args:
            x: Inputs of the context, rows first; with several arguments, by name.
            y: Its outcomes, shape ``(rows,)``; none for the prior predictive.
            x_new: Inputs of the new rows.

        Returns:
            A NumPyro distribution, one per new row.

        Raises:
            DataError: If shapes do not fit, something is not finite, or the context is larger than in training.
        """
        before, after = self._inputs(x, "x"), self._inputs(x_new, "x_new")
        inputs, outcomes, context = self._rows(before, y, after)
        return _predict(self.law, inputs, outcomes, context, len(before))

    def martingale(
        self, key: int | PRNGKey, x: Inputs, y: ArrayLike, x_pseudo: Inputs, x_new: Inputs, paths: int = 200
    ) -> Array:
        """Draws of the predictive mean of new rows, from the martingale posterior: what is left to learn from
        pseudo-outcomes at ``x_pseudo`` (see the page of the module).

        Args:
            key: An int or a typed JAX key.
            x: Inputs of the context.
            y: Its outcomes.
            x_pseudo: Inputs of the pseudo-context, in the order in which outcomes are drawn.
            x_new: Inputs of the new rows.
            paths: How many draws.

        Returns:
            Shape ``(paths, new rows)``.

        Raises:
            DataError: As ``given``; context and pseudo-context together count as context.
        """
        if not is_count(paths):
            raise MethodError(f"paths must be an int of at least 1, got {paths!r}.")
        before, pseudo = self._inputs(x, "x"), self._inputs(x_pseudo, "x_pseudo")
        after = np.concatenate([pseudo, self._inputs(x_new, "x_new")])
        inputs, outcomes, context = self._rows(before, y, after, len(pseudo))
        keys = jax.random.split(as_key(key), paths)
        return _resampled(keys, self.law, inputs, outcomes, context, len(pseudo))[:, len(before) + len(pseudo) :]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it to a folder, which is replaced if it holds a learned distribution already.

        Raises:
            StoreError: If the folder cannot be written or holds something else.
        """
        saving.save(self.law, folder)

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> Predictor:
        """Read what ``save`` wrote. Files are data: nothing in them is executed.

        Raises:
            StoreError: If the folder holds no predictor.
        """
        law = saving.load(folder)
        if not isinstance(law, LearnedRowPredictor):
            raise StoreError(f"{os.fspath(folder)} holds no predictor, but a {type(law).__name__}.")
        return Predictor(law)

    def _rows(self, before: np.ndarray, y: ArrayLike, after: np.ndarray, more: int = 0) -> tuple[Array, Array, Array]:
        """Inputs, outcomes and marks of the context, of all rows, shapes ``(rows, features)`` and ``(rows,)``; ``more``
        rows will become context."""
        y = np.asarray(y, float)
        if y.shape != before.shape[:1]:
            raise DataError(f"y has shape {y.shape}, and x has {len(before)} rows. Give one outcome per row.")
        if not np.isfinite(y).all():
            raise DataError("y has outcomes that are not finite. Leave those rows out of the context.")
        if len(y) + more >= self.rows:
            raise DataError(
                f"the context has {len(y) + more} rows, and training had at most {self.rows - 1}. Train with a model of more "
                f"rows."
            )
        outcomes = np.concatenate([y, np.zeros(len(after))])
        context = np.arange(len(outcomes)) < len(y)
        return jnp.asarray(np.concatenate([before, after])), jnp.asarray(outcomes), jnp.asarray(context)

    def _inputs(self, x: Inputs, name: str) -> np.ndarray:
        """Inputs of rows, shape ``(rows, features)``."""
        fields = self.law.family.inputs
        if not isinstance(x, Mapping):
            if len(fields) != 1:
                names = ", ".join(repr(field.name) for field in fields)
                raise DataError(f"{name} must be a mapping from {names} to arrays, rows first.")
            x = {fields[0].name: x}
        parts = []
        for field in fields:
            if field.name not in x:
                raise DataError(f"{name} lacks {field.name!r}. {suggestion(field.name, list(x))}")
            part = np.asarray(x[field.name], float)
            if part.shape[1:] != field.shape and not (part.ndim == 2 and part.shape[1] == field.size):
                raise DataError(
                    f"{name} has shape {part.shape} for {field.name!r}, and a row has {field.shape}. Give rows first."
                )
            parts.append(part.reshape(len(part), field.size))
        if len({len(part) for part in parts}) > 1:
            raise DataError(f"the arguments in {name} have different numbers of rows. Give as many of each.")
        whole = np.concatenate(parts, 1)
        if not np.isfinite(whole).all():
            raise DataError(f"{name} has inputs that are not finite. Correct them.")
        return whole


@eqx.filter_jit
def _predict(law: LearnedRowPredictor, x: Array, y: Array, context: Array, first: int) -> BarDistribution:
    """The laws of the rows from the ``first`` on."""
    found = law.predict(x, y, context)
    return BarDistribution(found.logits[first:], found.edges, found.tails)


@eqx.filter_jit
def _resampled(keys: Array, law: LearnedRowPredictor, x: Array, y: Array, context: Array, count: int) -> Array:
    """Predictive means of all rows after ``count`` pseudo-outcomes, one set per key, shape ``(keys, rows)``."""
    known = jnp.sum(context)

    def path(key: PRNGKey) -> Array:
        def step(state: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], None]:
            y, context = state
            outcome = law.predict(x, y, context).sample(jax.random.fold_in(key, j))[known + j]
            return (y.at[known + j].set(outcome.astype(y.dtype)), context.at[known + j].set(True)), None

        (whole, told), _ = jax.lax.scan(step, (y, context), jnp.arange(count))
        return law.predict(x, whole, told).mean

    return jax.lax.map(path, keys, batch_size=64)


def predictor(
    model: Model,
    observed: str,
    design: Design | None = None,
    method: PFN | None = None,
    simulations: int = 20_000,
    *,
    seed: int | jax.Array = 0,
    store: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Predictor:
    """Learn the posterior predictive of a row of a program, for contexts of any size, from data sets that it draws.

    Args:
        model: The program with as many rows as a data set may have. Rows must be exchangeable given their inputs: their
            order is told to nobody. Its data are not looked at.
        observed: The site of the outcomes, one real number per row.
        design: ``design(key)`` draws inputs by name of argument, rows first. Without it, inputs are the arguments that
            the model has, if there are any with a value per row.
        method: The network.
        simulations: How many data sets.
        seed: An int or a typed JAX key.
        store: A folder ``*.zarr`` in which training is kept while it goes on; after a crash the same call goes on.
        progress: Show progress bars. ``None``: at a terminal only.

    Raises:
        ModelError: If ``observed`` is no site, or not one real number per row.
        MethodError: If a prior cannot be drawn from, or settings make no sense.
        DataError: If hardly a data set is finite.
    """
    method = PFN() if method is None else method
    if not isinstance(method, PFN):
        raise MethodError(f"method must be a pg.PFN, got {method!r}. Write pg.PFN().")
    if not is_count(simulations, 2):
        raise MethodError(f"simulations must be an int of at least 2, got {simulations!r}. 20_000 is usual.")
    rows = _check(model, observed)
    inputs = _fields(model, observed, design, rows)
    key_simulate, key_fit = jax.random.split(as_key(seed))
    shown = show_by_default() if progress is None else progress
    parts = []
    with Progress(["simulations"], simulations, shown, "draws") as bar:
        for first in range(0, simulations, _CHUNK):
            indices = jnp.arange(first, first + min(_CHUNK, simulations))
            call = (key_simulate, model, indices, observed, design, tuple(field.name for field in inputs))
            (program,), _ = compile_all([(_data_sets, call)])
            parts.append(jax.device_get(program(*call)))
            bar.update(0, min(first + _CHUNK, simulations), {})
    data = np.concatenate(parts)[:simulations]
    good = np.isfinite(data).all((1, 2))
    if good.sum() < max(0.1 * simulations, 2) or np.ptp(data[good][..., -1]) == 0:
        what = "have the same outcomes" if good.any() else "are not finite"
        raise DataError(f"{simulations} data sets {what}. Mend the program, or narrow its priors.")
    family = RowPredictor(inputs=inputs, bars=method.bars, width=method.width, depth=method.depth, heads=method.heads)
    training = method.training or Training(steps=20_000, batch=64, learning_rate=1e-3)
    law = fit(family, data[good], training=training, seed=key_fit, store=store, progress=shown)
    assert isinstance(law, LearnedRowPredictor)
    return Predictor(law)


def _check(model: Model, observed: str) -> int:
    """Number of rows; refuse what cannot be predicted."""
    if not isinstance(model, Model):
        raise ModelError(f"model must be a pg.Model, got {type(model).__name__}. Wrap the program: pg.Model(program).")
    sites = model.of_kind(Kind.continuous, Kind.discrete, Kind.observed)
    names = [site.name for site in sites]
    if observed not in names:
        raise ModelError(f"observed names {observed!r}, which is not a sample site. {suggestion(observed, names)}")
    site = model.sites[observed]
    if len(site.shape) != 1 or site.shape[0] < 2 or not site.dtype.startswith("float"):
        raise ModelError(
            f"site {observed!r} has shape {site.shape} and type {site.dtype}, expected one real number per row, and two rows "
            f"or more."
        )
    for one in model.sites:
        check_drawable(one, "pg.amortized.predictor")
        if one.kind is Kind.factor:
            raise ModelError(f"site {one.name!r} is a numpyro.factor, which is not simulated. Write numpyro.sample.")
    return site.shape[0]


def _fields(model: Model, observed: str, design: Design | None, rows: int) -> tuple[Field, ...]:
    """The inputs of a row."""
    source = model.sites[observed].source
    shapes = {
        name: tuple(leaf.shape)
        for name, leaf in model.leaves.items()
        if ("data", name) != source and name != observed and hasattr(leaf, "shape")
    }
    if design is None:
        return tuple(Field(name, shape[1:]) for name, shape in shapes.items() if shape[:1] == (rows,))
    drawn = jax.eval_shape(lambda key: {k: jnp.asarray(v) for k, v in design(key).items()}, jax.random.key(0))
    for name, value in drawn.items():
        if name not in shapes:
            raise MethodError(
                f"design draws {name!r}, which is not an array among the data of the model. {suggestion(name, shapes)}"
            )
        if value.shape != shapes[name] or value.shape[:1] != (rows,):
            raise MethodError(
                f"design draws {name!r} with shape {value.shape}, and the model has {shapes[name]} and {rows} rows. Draw one "
                f"value per row."
            )
    return tuple(Field(name, value.shape[1:]) for name, value in drawn.items())


def _data_sets(
    key: PRNGKey, model: Model, indices: Array, observed: str, design: Design | None, inputs: tuple[str, ...]
) -> Array:
    """Data sets from the program, shape ``(n, rows, features + 1)``."""

    def one(index: Array) -> Array:
        key_design, key_data = jax.random.split(jax.random.fold_in(key, index))
        arguments = {} if design is None else dict(design(key_design))
        here = model
        if arguments:
            names = list(arguments)
            new = [jnp.asarray(arguments[name]) for name in names]
            here = eqx.tree_at(lambda m: [m.leaves[name] for name in names], model, new)
        y = trace_forward(here, key_data, {}, frozenset())[observed]["value"]
        columns = [jnp.reshape(here.leaves[name], (len(y), -1)) for name in inputs]
        return jnp.concatenate([*columns, y[:, None]], 1).astype(jnp.float32)

    return jax.vmap(one)(indices)
