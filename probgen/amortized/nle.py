r"""Neural likelihood estimation (Papamakarios, Sterratt and Murray 2019), of one row where rows are independent.

The law of an observation given the parameters is learned from simulations, and the posterior is that of the program's own
prior: what a prior rules out stays ruled out. In a plate whose rows are independent given the parameters (the graph of the
program says so, see ``learned_likelihood``) what is learned is the law of *one* row: each simulation gives as many pairs as
it has rows, and the likelihood of any number of rows is their product.

Rows of one answer, no or yes (``dist.Bernoulli``), have probabilities, which are learned as such (``BinaryRegression``).
Other integers (sites of an integer type) have no density; they are learned with normal noise of deviation 0.2, and looked
up without it: at an integer that law is a constant times its probability, up to 4e-6 of its neighbours'.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probgen.amortized.amortized_likelihood import AmortizedLikelihood, check_sampler
from probgen.amortized.binary_regression import BinaryRegression
from probgen.amortized.estimator import Estimator
from probgen.amortized.learned_likelihood import Factors, parts_of
from probgen.amortized.reading import Field, Rows
from probgen.amortized.task import Task
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.family import Family, Spec, Training
from probgen.generative.learned import Exactness
from probgen.generative.mixture_density import MixtureDensity
from probgen.generative.training import fit
from probgen.infer.method import Method

__all__ = ["NLE"]

_NOISE = 0.2


class NLE(Estimator):
    """Neural likelihood estimation: the law of the observation given the parameters.

    Attributes:
        family: A conditional family with an exact density.
        binary: Of rows that are one answer, no or yes; how many entries they share is set here.
        sampler: How posteriors are sampled; see ``AmortizedLikelihood``.
        training: Steps, rates, batches; the family's own defaults if ``None``.
    """

    family: Family = eqx.field(default=MixtureDensity())
    binary: BinaryRegression = eqx.field(default=BinaryRegression())
    sampler: Method | None = eqx.field(static=True, default=None)
    training: Training | None = eqx.field(static=True, default=None)

    def check(self) -> None:
        """See ``Estimator.check``."""
        super().check()
        if not isinstance(self.family, Family) or self.family.discrete:
            raise MethodError(
                f"family must be a generative family of real data, got {self.family!r}. Write for example "
                f"family=pg.generative.MixtureDensity()."
            )
        if not isinstance(self.binary, BinaryRegression):
            raise MethodError(f"binary must be a pg.amortized.BinaryRegression(), got {self.binary!r}. Leave it out.")
        if self.sampler is not None:
            check_sampler(self.sampler)

    def fit(self, key: jax.Array, task: Task, *, store: Any = None, progress: bool = False) -> AmortizedLikelihood:
        """See ``Estimator.fit``.

        Raises:
            MethodError: If the family has no exact density.
        """
        question = task.question
        parts = parts_of(task.density, question.reading)
        key_noise, *keys = jax.random.split(key, 2 + len(question.reading.rows))
        pairs, families = self._pairs(key_noise, task), self._families(task)
        for family, (x, condition) in zip(families, pairs, strict=True):
            if family is self.family:
                self._check_exact(Spec(x.shape[1:], condition.shape[1:]))
        laws = []
        for i, (key_part, family, (x, condition)) in enumerate(zip(keys, families, pairs, strict=False)):
            law = fit(
                family,
                x,
                condition,
                values=2 if family.discrete else None,
                training=self.training,
                seed=key_part,
                store=_store_of(store, i, len(pairs)),
                progress=progress,
            )
            laws.append(law)
        factors = Factors(question, parts, tuple(law.family for law in laws), tuple(law.spec for law in laws))
        whole = factors.distribution(tuple(law.net for law in laws), Spec((question.reading.size,), (question.dim,)))
        whole.history = laws[0].history
        return AmortizedLikelihood(law=whole, sampler=self.sampler)

    def _check_exact(self, spec: Spec) -> None:
        self.family.check(spec)
        net = eqx.filter_eval_shape(self.family.build, jax.random.key(0), spec)
        if self.family.distribution(net, spec).offers.get("log_prob") is not Exactness.exact:
            raise MethodError(
                f"a {type(self.family).__name__} has no exact density, which a likelihood is. Use "
                f"pg.generative.MixtureDensity() or pg.generative.Flow()."
            )

    def _families(self, task: Task) -> list[Family]:
        """What each part is learned by, that of the vector first."""
        reading, parts = task.question.reading, parts_of(task.density, task.question.reading)
        binary = dataclasses.replace(self.binary, shared=task.question.dim)
        rows = [binary if _is_answer(reading.rows[i], task) else self.family for i in parts.groups]
        return [self.family, *rows] if parts.whole else rows

    def _pairs(self, key: PRNGKey, task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
        """Data and conditions of each part: those of all simulations, and of all their rows."""
        reading, u = task.question.reading, np.asarray(task.simulations.u, np.float32)
        parts = parts_of(task.density, reading)
        read = jax.vmap(reading.unpack)(jnp.asarray(task.packed))
        found = []
        if parts.whole:
            values, _, given = (np.asarray(a) for a in jax.vmap(parts.vector)(read))
            whole = [g for g, factored in zip(reading.rows, parts.factored, strict=True) if not factored]
            counts = [_whole_numbers(reading.flat, task)]
            counts += [np.tile(_whole_numbers(group.fields, task), group.count) for group in whole]
            found.append((values, np.concatenate(counts), np.concatenate([u, given], 1)))
        for i in parts.groups:
            rows, _, given = (np.asarray(a) for a in jax.vmap(lambda r, i=i: parts.rows(r, i))(read))
            condition = np.concatenate([np.repeat(u[:, None], rows.shape[1], 1), given], -1)
            x, condition = (a.reshape(-1, a.shape[-1]) for a in (rows, condition))
            answer = _is_answer(reading.rows[i], task)
            found.append((x, _whole_numbers(reading.rows[i].fields, task) & (not answer), condition))
        keys = jax.random.split(key, len(found))
        return [
            (x + np.where(counts, _NOISE * np.asarray(jax.random.normal(k, x.shape, np.float32)), 0.0), condition)
            for k, (x, counts, condition) in zip(keys, found, strict=True)
        ]


def _is_answer(group: Rows, task: Task) -> bool:
    """Whether a row is one answer, no or yes."""
    return group.width == 1 and task.density.model.sites[group.fields[0].name].support == "boolean"


def _whole_numbers(fields: tuple[Field, ...], task: Task) -> np.ndarray:
    """Which numbers of the fields are integers, by the type of their sites."""
    found = [np.full(field.size, task.simulations.observed[field.name].dtype.kind in "iub") for field in fields]
    return np.concatenate([np.zeros(0, bool), *found])


def _store_of(store: Any, i: int, count: int) -> Any:
    """A store for each part."""
    if store is None or count == 1:
        return store
    return f"{os.fspath(store).removesuffix('.zarr')}-{i}.zarr"
