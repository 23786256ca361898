r"""Likelihoods that were learned part by part.

An observation is cut into *parts* that the graph of the program says to be independent given the parameters :math:`u`: the
rows of a plate, each a datum of its own, and all the rest as one vector. With the arguments :math:`t_i` that belong to a
row,

.. math:: \hat\ell(u) = \log q_0(x_0 \mid u) + \sum_g \sum_i \log q_g(x_{g,i} \mid u, t_{g,i})

so what is learned of one row serves any number of them, and rows that are missing are left out.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints

from probgen.amortized.amortized_family import AmortizedFamily
from probgen.amortized.binary_regression import LearnedBinaryRegression
from probgen.amortized.learned_density import LogLikelihood
from probgen.amortized.question import Question
from probgen.amortized.reading import Read, Reading, Rows
from probgen.base.errors import DataError, MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.program.density import Density
from probgen.program.graph import graph_of
from probgen.program.simulate import observed_values
from probgen.program.sites import Kind

if TYPE_CHECKING:
    from probgen.amortized.amortized_likelihood import AmortizedLikelihood

__all__ = ["Factors", "LearnedFactors", "LearnedLikelihood", "ObservationLaw", "Parts", "parts_of"]


class LearnedLikelihood(Learned):
    """What a network knows of observations given parameters."""

    normalised: ClassVar[bool]
    """Whether it is a density of the observation, rather than a multiple of one."""

    @property
    @abc.abstractmethod
    def question(self) -> Question:
        """What it was trained for."""

    @property
    @abc.abstractmethod
    def estimator(self) -> str:
        """What was trained, in words."""

    @abc.abstractmethod
    def about(self, density: Density) -> LogLikelihood:
        """The log likelihood of the observation of a model.

        Raises:
            MethodError, DataError: If the model asks another question.
        """


class Parts(Part):
    """How an observation is cut into parts.

    Attributes:
        reading: How it is read.
        factored: By group of rows, whether each row is a part of its own.
    """

    reading: Reading
    factored: tuple[bool, ...] = eqx.field(static=True)

    @property
    def whole(self) -> int:
        """Numbers of the part that is one vector; 0 if there is none."""
        flat = sum(field.size for field in self.reading.flat)
        return flat + sum(g.count * g.width for g, f in zip(self.reading.rows, self.factored, strict=True) if not f)

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups whose rows are parts."""
        return tuple(i for i, factored in enumerate(self.factored) if factored)

    def vector(self, read: Read) -> tuple[Array, Array, Array]:
        """The part that is one vector; which of it is there; the arguments that belong to it."""
        count = sum(field.size for field in self.reading.flat)
        values, seen, given = [read.flat[:count]], [read.flat_seen[:count]], [read.flat[count:]]
        for i, factored in enumerate(self.factored):
            if not factored:
                values.append(read.rows[i].reshape(-1))
                seen.append(read.rows_seen[i].reshape(-1))
                given.append(read.designs[i].reshape(-1))
        return jnp.concatenate(values), jnp.concatenate(seen), jnp.concatenate(given)

    def rows(self, read: Read, i: int) -> tuple[Array, Array, Array]:
        """The rows of a group, shape ``(count, width)``; which entries are there; their arguments, of the observation as
        a whole last, shape ``(count, given)``."""
        count = sum(field.size for field in self.reading.flat)
        shared = jnp.broadcast_to(read.flat[count:], (read.rows[i].shape[0], read.flat.shape[0] - count))
        return read.rows[i], read.rows_seen[i], jnp.concatenate([read.designs[i], shared], -1)

    def with_counts(self, counts: dict[str, int]) -> Parts:
        """With room for more rows."""
        rows = tuple(
            dataclasses.replace(g, count=max(g.count, counts.get(g.name, 0))) if f else g
            for g, f in zip(self.reading.rows, self.factored, strict=True)
        )
        return dataclasses.replace(self, reading=dataclasses.replace(self.reading, rows=rows))


def parts_of(density: Density, reading: Reading) -> Parts:
    """The parts of an observation that the program says to be independent given its continuous sites.

    Rows are where nothing else that is observed enters them, and no discrete site was summed out: that would tie them.
    """
    model = density.model
    free = not model.of_kind(Kind.discrete) and any(not group.ordered for group in reading.rows)
    tied: set[str] = set()
    if free:
        graph = graph_of(model)
        observed = {site.name for site in model.of_kind(Kind.observed)}
        between = {site.name for site in model.of_kind(Kind.deterministic)}
        for name in observed:
            todo = [name]
            for here in todo:
                for child in graph.successors(here):
                    if child in observed and child != name:
                        tied |= {name, child}
                    elif child in between and child not in todo:
                        todo.append(child)
    factored = tuple(
        free and not group.ordered and not tied & {field.name for field in group.fields} for group in reading.rows
    )
    return Parts(reading, factored)


class Factors(AmortizedFamily):
    """The laws of the parts of an observation; each is fitted by itself (see ``pg.NLE``).

    Attributes:
        question: What is asked.
        parts: How an observation is cut.
        families: The family of each part, that of the vector first if there is one.
        specs: Shapes of their data.
    """

    question: Question
    parts: Parts
    families: tuple[Family, ...]
    specs: tuple[Spec, ...]

    def build(self, key: PRNGKey, spec: Spec) -> tuple[Any, ...]:
        keys = jax.random.split(key, len(self.families))
        return tuple(f.build(k, s) for k, f, s in zip(keys, self.families, self.specs, strict=True))

    def loss(self, key: PRNGKey, net: Any, x: Array, condition: Array | None, now: Now) -> Scalar:
        """There is none: each part has its own."""
        raise NotImplementedError

    def distribution(self, net: tuple[Any, ...], spec: Spec) -> LearnedFactors:
        return LearnedFactors(self, spec, net)

    def method(self, law: Learned) -> AmortizedLikelihood:
        from probgen.amortized.amortized_likelihood import AmortizedLikelihood

        assert isinstance(law, LearnedLikelihood)
        return AmortizedLikelihood(law=law)


class LearnedFactors(LearnedLikelihood):
    """The learned laws of all parts."""

    offers: ClassVar[dict[str, Exactness]] = {}
    normalised: ClassVar = True

    family: Factors
    net: tuple[Any, ...]

    @property
    def question(self) -> Question:
        """See ``LearnedLikelihood.question``."""
        return self.family.question

    @property
    def estimator(self) -> str:
        """See ``LearnedLikelihood.estimator``."""
        names = dict.fromkeys(type(family).__name__ for family in self.family.families)
        return f"NLE({', '.join(names)})"

    @property
    def laws(self) -> tuple[Learned, ...]:
        """The law of each part given parameters and arguments."""
        parts = zip(self.family.families, self.net, self.family.specs, strict=True)
        return tuple(family.distribution(net, spec) for family, net, spec in parts)

    def about(self, density: Density) -> SeenFactors:
        """See ``LearnedLikelihood.about``. There may be any number of rows of a plate."""
        parts, question = self.family.parts, self.question
        values = dict(question.bound) if question.outside else observed_values(density.model)
        counts = {
            group.name: values[group.fields[0].name].shape[group.fields[0].axis]
            for i, group in enumerate(parts.reading.rows)
            if i in parts.groups and group.fields[0].name in values
        }
        parts = parts.with_counts(counts)
        least = tuple((parts.reading.rows[i].name, 1) for i in parts.groups)
        packed = dataclasses.replace(question, reading=parts.reading, fewest=least, fixed=()).observation(density)
        return self.seen(parts, parts.reading.unpack(packed))

    def seen(self, parts: Parts, read: Read) -> SeenFactors:
        """The log likelihood of an observation that was read.

        Raises:
            DataError: If part of a datum is missing.
        """
        found = []
        if parts.whole:
            values, seen, given = parts.vector(read)
            _check_whole(seen)
            found.append((values, None, given))
        for i in parts.groups:
            rows, seen, given = parts.rows(read, i)
            broken = read.present[i] & jnp.any(seen, 1) & ~jnp.all(seen, 1)
            _check_rows(broken, parts.reading.rows[i])
            found.append((rows, read.present[i] & jnp.all(seen, 1), given))
        return SeenFactors(self.laws, tuple(found))


def _check_whole(seen: Array) -> None:
    if not np.all(np.asarray(seen)):
        raise DataError(
            f"{int(np.sum(~np.asarray(seen)))} entries of the observation are missing, and its law was learned as a whole. "
            f"Give a complete observation, or amortize with pg.FlowMatching() and missing=0.2, say."
        )


def _check_rows(broken: Array, group: Rows) -> None:
    count = int(np.sum(np.asarray(broken)))
    if count:
        raise DataError(
            f"{count} rows along {group.name!r} have some entries and lack others, and the law was learned of whole rows. "
            f"Mark all entries of these rows by NaN, which leaves them out, or amortize with pg.FlowMatching()."
        )


class SeenFactors(eqx.Module):
    """The log likelihood of one observation.

    Attributes:
        laws: Of the parts.
        parts: Of each, its values, which rows are there (``None``: one datum), and arguments.
    """

    laws: tuple[Learned, ...]
    parts: tuple[tuple[Array, Array | None, Array], ...]

    def __call__(self, u: Array) -> Scalar:
        """See ``LogLikelihood``."""
        total = jnp.zeros((), u.dtype)
        for law, (values, present, given) in zip(self.laws, self.parts, strict=True):
            total = total + _log_prob(law, u, values.astype(u.dtype), present, given.astype(u.dtype))
        return total


def _log_prob(law: Learned, u: Array, values: Array, present: Array | None, given: Array) -> Scalar:
    """Of one part."""
    if present is None:
        return law.given(jnp.concatenate([u, given])).log_prob(values)
    if isinstance(law, LearnedBinaryRegression):
        each = law.of_rows(u, given, values)
    elif given.shape[1] == 0:  # the network is asked once for all rows
        each = law.given(u).log_prob(values)
    else:
        each = law.given(jnp.concatenate([jnp.broadcast_to(u, (len(given), u.shape[0])), given], 1)).log_prob(values)
    return jnp.sum(jnp.where(present, each, 0.0))


class ObservationLaw(eqx.Module):
    """A learned likelihood as a function from constrained parameters to a NumPyro distribution; see
    ``AmortizedLikelihood.likelihood``.

    Attributes:
        law: What was learned.
        density: Of the model, for the coordinates of its parameters.
    """

    law: LearnedFactors
    density: Density

    @classmethod
    def of(cls, law: LearnedLikelihood, density: Density) -> Self:
        """Of a density whose model observes what was learned.

        Raises:
            MethodError: See ``AmortizedLikelihood.likelihood``.
        """
        if not isinstance(law, LearnedFactors):
            raise MethodError(
                "a ratio was learned, which is a likelihood only up to a function of the observation. Use pg.NLE()."
            )
        if law.question.outside or len(law.question.reading.observed) != 1:
            raise MethodError(
                f"the likelihood is one of {sorted(law.question.reading.observed)}, and a distribution is one of a single "
                f"site of the program. Observe one site."
            )
        law.question.observation(density)  # refuses another model
        return cls(law, density)

    def __call__(self, **values: ArrayLike) -> Distribution:
        """The law of the observed site.

        Args:
            values: Every latent site by name, in constrained space. The distribution is differentiable in them.
        """
        missing = [block.name for block in self.density.blocks if block.name not in values]
        if missing or len(values) > len(self.density.blocks):
            raise MethodError(
                f"the likelihood was given {sorted(values)}, and the parameters are "
                f"{sorted(block.name for block in self.density.blocks)}. Give each of them."
            )
        u = self.density.unconstrain({name: jnp.asarray(value) for name, value in values.items()})
        return LearnedObservation(u, self)


class LearnedObservation(Distribution):
    """The learned law of an observed site at one value of the parameters.

    Args:
        u: Unconstrained coordinates, shape ``(dim,)``.
        law: What was learned.
    """

    pytree_data_fields = ("u", "law")

    def __init__(self, u: Array, law: ObservationLaw) -> None:
        self.u, self.law = u, law
        super().__init__((), law.density.model.sites[self._name].shape)

    @property
    def _name(self) -> str:
        return self.law.law.question.reading.observed[0]

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    def _read(self, value: Array) -> tuple[Parts, Read]:
        parts, model = self.law.law.family.parts, self.law.density.model
        arguments = {name: model.leaves[name] for name in parts.reading.arguments}
        return parts, parts.reading.unpack(parts.reading.pack({self._name: value}, arguments))

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log density of an observation of the site's shape; shape that of ``value`` without the event."""
        value = jnp.asarray(value)
        head = value.shape[: value.ndim - self.event_dim]

        def one(value: Array) -> Scalar:
            parts, read = self._read(value)
            found: list[tuple[Array, Array | None, Array]] = []
            if parts.whole:
                values, _, given = parts.vector(read)
                found.append((values, None, given))
            for i in parts.groups:
                rows, _, given = parts.rows(read, i)
                found.append((rows, read.present[i], given))
            return SeenFactors(self.law.law.laws, tuple(found))(self.u)

        return jax.vmap(one)(value.reshape(-1, *self.event_shape)).reshape(head)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape ``(*sample_shape, *event_shape)``."""
        parts, read = self._read(jnp.zeros(self.event_shape))
        laws = self.law.law.laws
        (group,) = parts.reading.rows or (None,)
        if parts.whole:
            _, _, given = parts.vector(read)
            drawn = laws[0].given(jnp.concatenate([self.u, given])).sample(key, sample_shape)
        else:
            _, _, given = parts.rows(read, 0)
            condition = jnp.concatenate([jnp.broadcast_to(self.u, (len(given), self.u.shape[0])), given], 1)
            drawn = laws[0].given(condition).sample(key, sample_shape)
        if group is None:
            return drawn.reshape(*sample_shape, *self.event_shape)
        field = group.fields[0]
        rows = drawn.reshape(*sample_shape, group.count, *field.shape)
        return jnp.moveaxis(rows, len(sample_shape), len(sample_shape) + field.axis)
