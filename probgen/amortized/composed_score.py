r"""Posteriors for any number of rows, trained on rows one at a time.

A conditional diffusion model learns the posterior given *one* row of a plate whose rows the program treats alike; scores of
rows are composed when an observation is there (see ``probgen.amortized.composed``). So simulations hold few rows, and
observations any number of them.

Composition needs the scores of all rows in common coordinates, so parameters are whitened once and for all, and not
centred at a linear prediction from the row as elsewhere (see ``Encoded``).

The score of the diffused prior is exact where the prior is Gaussian in unconstrained coordinates, which is seen from its
density: second derivatives that are the same everywhere. Otherwise it is that of a diffusion model of prior draws, trained
beside the first. ``described()["prior_score"]`` says which.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.amortized.amortized import AmortizedPosterior
from probgen.amortized.composed import Composition, Gauss, RowDenoisers
from probgen.amortized.encoded import Encoded, EncodedNet, LearnedEncoded
from probgen.amortized.encoder import ObservationEncoder
from probgen.amortized.estimator import Estimator
from probgen.amortized.question import Question
from probgen.amortized.reading import Read, Reading, Rows
from probgen.amortized.reference import judged
from probgen.amortized.task import Task
from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser, GaussianMixture
from probgen.generative.diffusion import Diffusion, LearnedDiffusion
from probgen.generative.family import Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.point_distribution import PointDistribution
from probgen.generative.training import fit
from probgen.program.density import Density
from probgen.program.simulate import observed_values
from probgen.program.sites import Kind

__all__ = ["ComposedLaw", "ComposedPosterior", "ComposedScore", "RowEncoded"]

_POINTS = 16


class RowEncoded(Encoded):
    """A diffusion model of parameters given one row, in coordinates that are the same for every row.

    Attributes:
        composition: How rows are composed.
        prior: That of the whitened prior: a Gaussian, or what was learned; ``None`` before training.
        trained: Rows of a simulation.
    """

    composition: Composition = eqx.field(kw_only=True, default=Gauss())
    prior: GaussianMixture | LearnedDiffusion | None = eqx.field(kw_only=True, default=None)
    trained: int = eqx.field(static=True, kw_only=True, default=1)

    def method(self, law: Learned) -> ComposedPosterior:
        assert isinstance(law, LearnedEncoded)
        return ComposedPosterior(law=law)

    def adapt(self, key: PRNGKey, net: EncodedNet, x: Array, condition: Array | None) -> EncodedNet:
        assert condition is not None
        key_reference, key_inner = jax.random.split(key)
        encoder = self.encoder.referenced(key_reference, net.encoder.adapted(condition), condition)
        # Numbers that say nothing: the prediction is the mean, and its residual the whitened parameter.
        nothing = jnp.zeros((len(x), self.encoder.numbers), x.dtype)
        prediction = net.prediction.adapted(x, nothing)
        rest = jax.vmap(prediction.inward)(x, nothing)
        inner = self.family.adapt(key_inner, net.inner, rest, jax.vmap(encoder)(condition))
        return EncodedNet(encoder, prediction, inner)


class ComposedLaw(PointDistribution):
    """The law of the unconstrained coordinates given all rows of an observation: draws alone. Those of one call come from
    one run of the composition.

    Attributes:
        law: That given one row.
        packed: The rows, shape ``(n, size of one row)``.
    """

    pytree_data_fields = ("law", "packed")

    offers: ClassVar = {"sample": Exactness.estimate}

    def __init__(self, law: LearnedEncoded, packed: Array) -> None:
        self.law, self.packed = law, packed
        super().__init__((), law.event_shape)

    @property
    def rows(self) -> RowDenoisers:
        """Denoisers of the whitened parameters, given one row each."""
        family, net = self.law.family, self.law.net
        given = jax.vmap(net.encoder)(self.packed)
        inner = family.family.distribution(net.inner, family._inner(self.law.spec))

        def denoiser(condition: Array) -> Denoiser:
            return inner.given(condition).denoiser  # pyright: ignore[reportAttributeAccessIssue]

        one = denoiser(given[0])
        here = lambda d: d.condition  # noqa: E731
        none = jax.tree.map(lambda _: None, one)
        own = eqx.tree_at(here, none, given, is_leaf=lambda leaf: leaf is None)
        return RowDenoisers(own, eqx.tree_at(here, one, None))

    @property
    def prior(self) -> Denoiser:
        """That of the whitened prior."""
        prior = self.law.family.prior  # pyright: ignore[reportAttributeAccessIssue]
        return prior.denoiser if isinstance(prior, LearnedDiffusion) else prior

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape ``(*sample_shape, dim)``."""
        count = int(np.prod(sample_shape, dtype=int))
        composition = self.law.family.composition  # pyright: ignore[reportAttributeAccessIssue]
        z = composition.draw(key, self.rows, self.prior, max(count, 1))[:count]
        return jax.vmap(lambda z: outward(self.law.net, z))(z).reshape(*sample_shape, *self.event_shape)

    def density(self, x: Array) -> Scalar:
        raise MethodError(
            "a composed posterior has no density of its own. Correct it by that of the model: "
            "pg.ImportanceSampling(amortized)."
        )


def inward(net: EncodedNet, u: Array) -> Array:
    """From unconstrained coordinates to those of the denoisers."""
    return net.inner.units.inward(net.prediction.inward(u, jnp.zeros(net.prediction.slope.value.shape[1])))


def outward(net: EncodedNet, z: Array) -> Array:
    """From the coordinates of the denoisers to the unconstrained ones."""
    return net.prediction.outward(net.inner.units.outward(z), jnp.zeros(net.prediction.slope.value.shape[1]))


class ComposedPosterior(AmortizedPosterior):
    """A posterior for any number of rows, composed of posteriors given one.

    ``pg.infer(model, amortized)`` draws from it, ``pg.ImportanceSampling(amortized)`` corrects it. The model may have more
    rows than that of the simulations, or fewer.
    """

    summary: ClassVar = "A posterior composed of those given single rows; any number of rows; approximate"

    @property
    def estimator(self) -> str:
        """See ``Amortized.estimator``."""
        return "ComposedScore"

    @property
    def _family(self) -> RowEncoded:
        assert isinstance(self.law.family, RowEncoded)
        return self.law.family

    def described(self) -> dict[str, Any]:
        """See ``Method.described``."""
        exact = isinstance(self._family.prior, GaussianMixture)
        return super().described() | {
            "composition": self._family.composition.said,
            "prior_score": "exact: a Gaussian" if exact else "learned from draws of the prior",
        }

    def composed(self, composition: Composition) -> ComposedPosterior:
        """The same networks with another composition; nothing is trained."""
        if not isinstance(composition, Composition):
            raise MethodError(f"composition must be one, got {composition!r}. Write pg.amortized.Gauss().")
        composition.check()
        family = dataclasses.replace(self._family, composition=composition)
        return ComposedPosterior(law=family.distribution(self.law.net, self.law.spec), backend=self.backend)

    def given(self, density: Density) -> Learned:
        """See ``AmortizedPosterior.given``."""
        return ComposedLaw(self.law, self.rows(density))  # pyright: ignore[reportReturnType]

    def judged(self, law: Learned) -> dict[str, float]:
        """See ``AmortizedPosterior.judged``: the least usual row, times their number."""
        assert isinstance(law, ComposedLaw)
        encoder = self.law.net.encoder
        if not encoder.reference.count:
            return {}
        each = [encoder.p_value(row) for row in law.packed]
        return judged(min(1.0, len(each) * min(each)), encoder.reference.count, len(each))

    def rows(self, density: Density) -> Array:
        """The rows of the observation of a model, packed one by one, shape ``(n, size of one row)``.

        Raises:
            MethodError: If the model asks another question.
            DataError: If rows have another shape, or are not finite.
        """
        count = _count(self.question.reading.rows[0], density)
        whole = _of_count(self.question, count)
        # A setting that was the number of rows is so still.
        was, now, own = repr(self._family.trained), repr(count), dict(density.model.settings)
        settings = tuple((k, now if v == was and repr(own.get(k)) == now else v) for k, v in whole.settings)
        whole = dataclasses.replace(whole, settings=settings)
        return split_rows(whole.reading, self.question.reading, whole.observation(density)[None])[0]


def _count(group: Rows, density: Density) -> int:
    """Number of rows that a model observes."""
    observed = observed_values(density.model)
    for field in group.fields:
        if field.name in observed:
            shape = jnp.shape(observed[field.name])
            if len(shape) <= field.axis or shape[field.axis] < 1:
                raise DataError(
                    f"the observation {field.name!r} has shape {shape}, and no rows along axis {field.axis}."
                )
            return shape[field.axis]
    return 1  # the question refuses the model, and says why


def _of_count(question: Question, count: int) -> Question:
    """The question that a number of rows answers."""
    (group,) = question.reading.rows
    reading = Reading((), (dataclasses.replace(group, count=count),))
    return dataclasses.replace(question, reading=reading, fewest=(), fixed=())


def split_rows(whole: Reading, single: Reading, packed: Array) -> Array:
    """Packed observations of many rows, shape ``(m, whole.size)``, row by row, shape ``(m, rows, single.size)``."""

    def one(vector: Array) -> Array:
        read = whole.unpack(vector)
        nothing = jnp.zeros(0, jnp.float32)

        def row(values: Array, seen: Array, design: Array, present: Array) -> Array:
            parts = ((part[None],) for part in (values, seen, design, present))
            return single.repack(Read(nothing, nothing > 0, *parts))

        return jax.vmap(row)(read.rows[0], read.rows_seen[0], read.designs[0], read.present[0])

    return jax.vmap(one)(packed)


class ComposedScore(Estimator):
    """Single-row posterior scores, composed for any number of rows (F-NPSE, Geffner et al. 2023; GAUSS and JAC, Linhart et
    al. 2024).

    The observed sites must lie in one plate whose rows the program treats alike, and every row of a simulation is trained
    on. Errors of the network count as often as there are rows.

    Attributes:
        composition: ``pg.amortized.Gauss()`` (the default), ``Jacobian()``, ``AnnealedLangevin()``, ``Particles()``.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        encoder_width: Features of a row inside of the encoder.
        encoder_depth: Blocks of attention of the encoder.
        training: Steps, rates, batches; the estimator's own defaults if ``None``.
    """

    composition: Composition = eqx.field(kw_only=True, default=Gauss())
    width: int = eqx.field(static=True, default=256)
    depth: int = eqx.field(static=True, default=4)
    encoder_width: int = eqx.field(static=True, default=64)
    encoder_depth: int = eqx.field(static=True, default=1)
    training: Training | None = eqx.field(static=True, default=None)

    def check(self) -> None:
        """See ``Estimator.check``."""
        super().check()
        if not isinstance(self.composition, Composition):
            raise MethodError(f"composition must be one, got {self.composition!r}. Write pg.amortized.Gauss().")
        self.composition.check()
        for name in ("width", "depth", "encoder_width", "encoder_depth"):
            if not is_count(getattr(self, name)):
                raise MethodError(f"ComposedScore got {name}={getattr(self, name)!r}, expected an int of at least 1.")

    def fit(
        self, key: jax.Array, task: Task, *, store: str | os.PathLike[str] | None = None, progress: bool = False
    ) -> ComposedPosterior:
        """See ``Estimator.fit``.

        Raises:
            MethodError: If the observations are not the rows of one exchangeable plate.
        """
        question = task.question
        _check_rows(task)
        key_rows, key_prior = jax.random.split(key)
        single = _of_count(question, 1)
        packed = np.asarray(jax.jit(split_rows, static_argnums=(0, 1))(question.reading, single.reading, task.packed))
        count = packed.shape[1]
        training = self.training or Training(steps=10_000, learning_rate=1e-3, batch=256, weight_decay=1e-2)
        family = RowEncoded(
            family=Diffusion(width=self.width, depth=self.depth),
            encoder=ObservationEncoder(single, self.encoder_width, self.encoder_depth),
            composition=self.composition,
            trained=count,
        )
        law = fit(
            family,
            np.repeat(task.simulations.u, count, 0),
            packed.reshape(-1, packed.shape[2]),
            training=training,
            seed=key_rows,
            store=store,
            progress=progress,
        )
        prior = gaussian_prior(task.density, law.net) or self._learned_prior(key_prior, task, law, training, progress)
        family = dataclasses.replace(family, prior=prior)
        composed = family.distribution(law.net, law.spec)
        composed.history = law.history
        return family.method(composed)

    def _learned_prior(
        self, key: PRNGKey, task: Task, law: Learned, training: Training, progress: bool
    ) -> LearnedDiffusion:
        z = jax.jit(jax.vmap(lambda u: inward(law.net, u)))(jnp.asarray(task.simulations.u))
        # In the units of the rows, which must be the same.
        family = Diffusion(width=self.width, depth=self.depth, standardise=False)
        learned = fit(family, np.asarray(z), training=training, seed=key, progress=progress)
        assert isinstance(learned, LearnedDiffusion)
        return learned


def _check_rows(task: Task) -> None:
    """Refuse observations that are not rows of one plate, independent given the parameters."""
    reading, model = task.question.reading, task.density.model
    loose = [field.name for field in (*reading.flat, *reading.designs)]
    if loose or len(reading.rows) != 1 or reading.rows[0].ordered:
        shown = f"{loose[0]!r} is read entry by entry" if loose else f"there are {len(reading.rows)} groups of rows"
        if not loose and len(reading.rows) == 1:
            shown = f"{reading.rows[0].name!r} is a series"
        raise MethodError(
            f"ComposedScore needs observations that are rows of one plate (of two or more) which the program treats alike, "
            f"and {shown}. Put all observed sites into one plate, or use pg.FlowMatching()."
        )
    discrete = model.of_kind(Kind.discrete)
    if discrete:
        raise MethodError(
            f"ComposedScore needs rows that are independent given the continuous parameters, and site {discrete[0].name!r} is "
            f"discrete and latent. Use pg.FlowMatching()."
        )
    if task.question.fewest:
        raise MethodError("ComposedScore answers for any number of rows. Leave fewest out.")


def gaussian_prior(density: Density, net: EncodedNet) -> GaussianMixture | None:
    """The law of the whitened parameters under the prior, if it is Gaussian; ``None`` if not."""
    keys = jax.random.split(jax.random.key(0), _POINTS)
    u = jax.vmap(density.draw_prior)(keys)
    slopes = jax.jit(jax.vmap(jax.grad(density.log_prior)))(u)
    bends = np.asarray(jax.jit(jax.vmap(jax.hessian(density.log_prior)))(u))
    precision = -bends[0]
    exact = 1e-8 if bends.dtype == np.float64 else 1e-4
    if not np.isfinite(bends).all() or np.abs(bends + precision).max() > exact * np.abs(precision).max():
        return None
    if np.linalg.eigvalsh(precision).min() <= 0:
        return None
    covariance = np.linalg.inv(precision)
    mean = np.asarray(u[0]) + covariance @ np.asarray(slopes[0])
    change = np.asarray(jax.jacfwd(lambda u: inward(net, u))(jnp.asarray(mean)), float)
    white = change @ covariance @ change.T
    path = Diffusion().path
    return GaussianMixture([1.0], np.asarray(inward(net, jnp.asarray(mean)), float)[None], (white + white.T) / 2, path)
