r"""Group-equivariant neural posterior estimation: shifts that are known need not be learned.

Some parameters :math:`g` (an onset, a position, a level: the *pose*) do to the data what is known: data at :math:`g + h` are
those at :math:`g`, acted on by :math:`T_h`. Data could be brought to pose 0 if the pose were known. GNPE (Dax, Green, Gair,
Deistler, Schölkopf and Macke 2021, "Group equivariant neural posterior estimation") takes a blurred one, :math:`\hat g = g
+ \varepsilon` with :math:`\varepsilon \sim \kappa`, as one more unknown, and draws in turns (Gibbs)

.. math:: \hat g \mid u \sim \kappa(\cdot - g), \qquad u \mid \hat g, x \sim p(u \mid \hat g,\, T_{-\hat g}\, x)

whose stationary law has the posterior as the marginal of :math:`u`, for any action and any :math:`\kappa`: an action that
is only nearly right makes the network's task harder, and nothing wrong. The network sees data near pose 0 only. A narrow
:math:`\kappa` makes that simpler and the turns slower: of the distance to go, each leaves the share :math:`s^2 / (s^2 +
\operatorname{var} \kappa)`, with :math:`s` the posterior standard deviation of the pose (for Gaussians).

Where the program (prior of the pose included) does not change at all when parameters and data are shifted together, the
network need not see :math:`\hat g` either, and the answer shifts exactly as the data do.

Draws are those of Gibbs chains after a number of turns: they have no density, and ``pg.ImportanceSampling`` corrects them
by the density of the program.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.amortized.amortized import AmortizedPosterior
from probgen.amortized.encoded import Encoded, LearnedEncoded
from probgen.amortized.encoder import ObservationEncoder
from probgen.amortized.estimator import Estimator
from probgen.amortized.question import Question
from probgen.amortized.reading import Field, Reading
from probgen.amortized.reference import judged
from probgen.amortized.task import Task
from probgen.base.counts import is_count
from probgen.base.errors import MethodError, ModelError, suggestion
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.generative.family import Family, Training
from probgen.generative.flow_matching import FlowMatching as VelocityFamily
from probgen.generative.learned import Exactness, Learned
from probgen.generative.ode_solver import HeunSteps
from probgen.generative.point_distribution import PointDistribution
from probgen.generative.training import fit
from probgen.program.density import Density
from probgen.program.simulate import observed_values

__all__ = ["GNPE", "Group", "PosedEncoded", "PosedLaw", "PosedPosterior", "gibbs"]

_BATCH = 256
_PROXY = "pose proxy"


class Group(Part):
    """How a shift of parameters shows in the data; subclasses give ``act``.

    A posterior can be saved if the subclass is in a module, which must be imported before it is loaded.

    Attributes:
        pose: Names of the sites that are shifted; their supports are all real numbers.
        blur: Standard deviation of the proxy about the pose, for each of its numbers, or one for all; > 0.
        invariant: Whether the program, the prior of the pose included, stays exactly as it is when parameters and data are
            shifted together.
    """

    pose: tuple[str, ...] = eqx.field(static=True)
    blur: tuple[float, ...] | float = eqx.field(static=True)
    invariant: bool = eqx.field(static=True, default=False)

    @abc.abstractmethod
    def act(self, observed: Values, shift: Array) -> Values:
        """The observation, by site, as it would be had the pose been larger by ``shift``, a vector of its numbers."""

    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense."""
        blur = self.blur if isinstance(self.blur, tuple) else (self.blur,)
        if not all(isinstance(b, int | float) and math.isfinite(b) and b > 0 for b in blur):
            raise MethodError(f"blur must be positive, got {self.blur!r}. A standard deviation of the pose is usual.")
        if isinstance(self.pose, str) or not self.pose:
            raise MethodError(f"pose must be a tuple of names of sites, got {self.pose!r}. Write ('onset',).")


def gibbs(
    key: PRNGKey,
    conditional: Callable[[PRNGKey, Array], Array],
    index: tuple[int, ...],
    blur: Array,
    start: Array,
    sweeps: int,
) -> Array:
    """Last draws of independent Gibbs chains between the pose and its blurred proxy, shape ``(chains, dim)``.

    Args:
        key: Randomness.
        conditional: A draw of all parameters given a key and a proxy, shape ``(dim,)``.
        index: Which of these are the pose.
        blur: Standard deviations of the proxy, shape ``(len(index),)``.
        start: Poses to begin from, shape ``(chains, len(index))``.
        sweeps: Turns of each chain, >= 1.
    """
    at = jnp.asarray(index)

    def chain(given: tuple[PRNGKey, Array]) -> Array:
        def sweep(pose: Array, key: PRNGKey) -> Array:
            key_blur, key_draw = jax.random.split(key)
            return conditional(key_draw, pose + blur * jax.random.normal(key_blur, pose.shape, pose.dtype))

        key, pose = given
        keys = jax.random.split(key, sweeps)
        first = sweep(pose, keys[0])
        return jax.lax.scan(lambda u, key: (sweep(u[at], key), None), first, keys[1:])[0]

    return jax.lax.map(chain, (jax.random.split(key, len(start)), start), batch_size=_BATCH)


class PosedEncoded(Encoded):
    """A conditional family of parameters, relative to a pose proxy, given data that were brought to it.

    Attributes:
        group: The shifts.
        question: What is asked.
        index: Which coordinates are the pose.
        sweeps: Turns of a Gibbs chain.
        start: The law of the pose given data as they are, where chains begin; ``None`` before training.
    """

    group: Group = eqx.field(kw_only=True)
    question: Question = eqx.field(kw_only=True)
    index: tuple[int, ...] = eqx.field(static=True, kw_only=True)
    sweeps: int = eqx.field(static=True, kw_only=True)
    start: LearnedEncoded | None = eqx.field(kw_only=True, default=None)

    @property
    def blur(self) -> Array:
        """Standard deviations of the proxy, shape ``(len(index),)``."""
        return jnp.broadcast_to(jnp.asarray(self.group.blur, float), (len(self.index),))

    def method(self, law: Learned) -> PosedPosterior:
        assert isinstance(law, LearnedEncoded)
        return PosedPosterior(law=law)

    def posed(self, observed: Values, arguments: Values, proxy: Array) -> Array:
        """An observation brought to pose 0, as if its pose were the proxy, and packed."""
        moved = self.group.act(observed, -proxy)
        return self.encoder.reading.pack(moved, {**arguments, _PROXY: proxy})


class PosedLaw(PointDistribution):
    """The law of the unconstrained coordinates given an observation: last draws of Gibbs chains.

    Attributes:
        law: That of parameters relative to a proxy.
        start: That of the pose, where chains begin.
        observed: The observation, by site.
        arguments: Arguments of the program that are read with it.
    """

    pytree_data_fields = ("law", "start", "observed", "arguments")

    offers: ClassVar = {"sample": Exactness.estimate}

    def __init__(self, law: LearnedEncoded, start: Learned, observed: Values, arguments: Values) -> None:
        self.law, self.start, self.observed, self.arguments = law, start, observed, arguments
        super().__init__((), law.event_shape)

    def conditional(self, key: PRNGKey, proxy: Array) -> Array:
        """A draw of the parameters given a pose proxy, shape ``(dim,)``."""
        family: Any = self.law.family
        packed = family.posed(self.observed, self.arguments, proxy)
        return self.law.given(packed).draw(key).astype(proxy.dtype).at[jnp.asarray(family.index)].add(proxy)

    def chains(self, key: PRNGKey, start: Array) -> Array:
        """Last draws of chains from given poses, shape ``(chains, dim)``."""
        family: Any = self.law.family
        return gibbs(key, self.conditional, family.index, family.blur, start.astype(float), family.sweeps)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape ``(*sample_shape, dim)``."""
        key_start, key_sweeps = jax.random.split(key)
        count = int(np.prod(sample_shape, dtype=int))
        u = self.chains(key_sweeps, self.start.sample(key_start, (count,)))
        return u.reshape(*sample_shape, *self.event_shape)

    def density(self, x: Array) -> Scalar:
        raise MethodError(
            "draws of Gibbs chains have no density. Correct them by that of the model: pg.ImportanceSampling(amortized)."
        )


class PosedPosterior(AmortizedPosterior):
    """A posterior by Gibbs turns between the parameters and a blurred pose. ``pg.infer(model, amortized)`` draws from it,
    ``pg.ImportanceSampling(amortized)`` corrects it."""

    summary: ClassVar = "A posterior by Gibbs turns with data brought to a standard pose; approximate"

    @property
    def estimator(self) -> str:
        """See ``Amortized.estimator``."""
        return "GNPE"

    @property
    def _family(self) -> PosedEncoded:
        assert isinstance(self.law.family, PosedEncoded)
        return self.law.family

    @property
    def question(self) -> Question:
        """See ``Amortized.question``."""
        return self._family.question

    def described(self) -> dict[str, Any]:
        """See ``Method.described``."""
        return super().described() | {"pose": ", ".join(self._family.group.pose), "sweeps": self._family.sweeps}

    def judged(self, law: Learned) -> dict[str, float]:
        """See ``AmortizedPosterior.judged``: of data as they are."""
        assert isinstance(law, PosedLaw)
        assert isinstance(law.start, LearnedEncoded)
        encoder, observation = law.start.net.encoder, law.start.condition
        if observation is None or not encoder.reference.count:
            return {}
        return judged(encoder.p_value(observation), encoder.reference.count)

    def given(self, density: Density) -> Learned:
        """See ``AmortizedPosterior.given``."""
        family = self._family
        assert family.start is not None
        start = family.start.given(self.question.observation(density))
        arguments = {name: density.model.leaves[name] for name in self.question.reading.arguments}
        observed = {name: jnp.asarray(v, float) for name, v in observed_values(density.model).items()}
        return PosedLaw(self.law, start, observed, arguments)  # pyright: ignore[reportReturnType]


class GNPE(Estimator):
    """Group-equivariant neural posterior estimation (Dax et al. 2021) by flow matching.

    Attributes:
        group: How parameters shift the data.
        sweeps: Turns of each Gibbs chain.
        copies: Proxies per simulation that are trained on.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        steps: Heun steps per draw and turn.
        encoder_width: Features of a row (of a plate or a scan) inside of the encoder.
        encoder_depth: Blocks of attention of the encoder.
        training: Steps, rates, batches; the estimator's own defaults if ``None``.
    """

    group: Group = eqx.field(kw_only=True)
    sweeps: int = eqx.field(static=True, default=10)
    copies: int = eqx.field(static=True, default=4)
    width: int = eqx.field(static=True, default=256)
    depth: int = eqx.field(static=True, default=4)
    steps: int = eqx.field(static=True, default=10)
    encoder_width: int = eqx.field(static=True, default=64)
    encoder_depth: int = eqx.field(static=True, default=2)
    training: Training | None = eqx.field(static=True, default=None)

    def check(self) -> None:
        """See ``Estimator.check``."""
        super().check()
        if not isinstance(self.group, Group):
            raise MethodError(f"group must be a pg.amortized.Group, got {self.group!r}. Write a subclass with act.")
        self.group.check()
        for name in ("sweeps", "copies", "width", "depth", "steps", "encoder_width", "encoder_depth"):
            if not is_count(getattr(self, name)):
                raise MethodError(f"GNPE got {name}={getattr(self, name)!r}, expected an int of at least 1.")

    @property
    def family(self) -> Family:
        """The family of the residuals (see ``Encoded``)."""
        return VelocityFamily(width=self.width, depth=self.depth, solver=HeunSteps(self.steps))

    def fit(
        self, key: jax.Array, task: Task, *, store: str | os.PathLike[str] | None = None, progress: bool = False
    ) -> PosedPosterior:
        """See ``Estimator.fit``.

        Raises:
            ModelError: If a pose site is no latent site, or not one of all real numbers.
            MethodError: If the action changes shapes, or the model may have missing data.
        """
        question = task.question
        if question.missing or question.fewest or question.outside:
            raise MethodError(
                "GNPE acts on complete observations of sites of the program. Leave missing, fewest and simulator out."
            )
        index = pose_of(task.density, self.group.pose)
        if isinstance(self.group.blur, tuple) and len(self.group.blur) not in (1, len(index)):
            raise MethodError(f"blur has {len(self.group.blur)} numbers, and the pose {len(index)}. Give one for each.")
        key_blur, key_fit, key_start = jax.random.split(key, 3)
        family = PosedEncoded(
            family=self.family,
            encoder=ObservationEncoder(
                _with_proxy(question, index, self.group), self.encoder_width, self.encoder_depth
            ),
            group=self.group,
            question=question,
            index=index,
            sweeps=self.sweeps,
        )
        training = self.training or Training(steps=10_000, learning_rate=1e-3, batch=256, weight_decay=1e-2)
        u, packed = _pairs(key_blur, family, task, self.copies)
        law = fit(family, u, packed, training=training, seed=key_fit, store=store, progress=progress)
        start = fit(
            Encoded(self.family, ObservationEncoder(question, self.encoder_width, self.encoder_depth)),
            task.simulations.u[:, list(index)],
            task.packed,
            training=training,
            seed=key_start,
            progress=progress,
        )
        family = dataclasses.replace(family, start=start)
        posed = family.distribution(law.net, law.spec)
        posed.history = law.history
        return family.method(posed)


def _with_proxy(question: Question, index: tuple[int, ...], group: Group) -> Question:
    """The question with the proxy among what is read, unless the answer does not depend on it."""
    if group.invariant:
        return question
    reading = question.reading
    designs = (*reading.designs, Field(_PROXY, (len(index),)))
    return dataclasses.replace(question, reading=Reading(reading.flat, reading.rows, designs))


def _pairs(key: PRNGKey, family: PosedEncoded, task: Task, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters relative to proxies, and observations brought to these: ``copies`` per simulation."""
    simulations, model = task.simulations, task.density.model
    fixed = {n: model.leaves[n] for n in task.question.reading.arguments if n not in simulations.arguments}
    at = jnp.asarray(family.index)
    shapes = {name: np.shape(value)[1:] for name, value in simulations.observed.items()}

    def one(key: PRNGKey, u: Array, observed: Values, arguments: Values) -> tuple[Array, Array]:
        noise = family.blur * jax.random.normal(key, (len(family.index),))
        proxy = u[at] + noise
        moved = family.group.act(observed, -proxy)
        found = {name: jnp.shape(value) for name, value in moved.items()}
        if found != shapes:
            raise MethodError(f"act gives data of the shapes {found}, expected {shapes}. Keep sites and shapes.")
        return u.at[at].set(-noise), family.posed(observed, {**fixed, **arguments}, proxy)

    repeated = jax.tree.map(
        lambda leaf: np.repeat(leaf, copies, 0), (simulations.u, simulations.observed, simulations.arguments)
    )
    keys = jax.random.split(key, len(simulations) * copies)
    return jax.device_get(jax.jit(jax.vmap(one))(keys, *repeated))


def pose_of(density: Density, pose: tuple[str, ...]) -> tuple[int, ...]:
    """Which coordinates are the pose.

    Raises:
        ModelError: If a name is no latent site, or its values are not all real numbers.
    """
    first, found = 0, {}
    for block in density.blocks:
        found[block.name] = tuple(range(first, first + block.size))
        first += block.size
    for name in pose:
        if name not in found:
            raise ModelError(f"pose names {name!r}, which is not a latent site. {suggestion(name, list(found))}")
    u = density.draw_prior(jax.random.key(0))
    values = density.constrain(u)
    for name in pose:
        if not np.allclose(np.ravel(values[name]), np.asarray(u)[list(found[name])]):
            raise ModelError(
                f"the pose site {name!r} is not one of all real numbers, so it cannot be shifted. Give it a prior such as "
                f"Normal, or shift a site that has one."
            )
    return tuple(i for name in pose for i in found[name])
