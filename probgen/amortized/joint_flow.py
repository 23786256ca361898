r"""A flow of all sites of a program at once, any of which may stand at given values.

With :math:`x` the tokens (one per coordinate of a parameter or a datum, in standard units), :math:`m` the marks of those that
are given, and :math:`\varepsilon` noise,

.. math:: x_t = m\, x + (1 - m)\,((1 - t)\, x + t\, \varepsilon), \qquad
          \min_\theta\; E\, \| (1 - m)\,(v_\theta(x_t, t, m) - (\varepsilon - x)) \|^2

over random marks: flow matching (Lipman et al. 2023) in the place of the score of Gloeckler et al. (2024), "All-in-one
simulation-based inference". For each :math:`m` the flow of :math:`v` from :math:`t = 1` to 0 carries noise to the law of the
tokens that are not given, given those that are. The marks of training are, one fifth of the time each, those of the joint
law, the posterior, the likelihood, and independent ones with probabilities 0.3 and 0.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.amortized.amortized_family import AmortizedFamily
from probgen.amortized.encoder import Units
from probgen.amortized.question import Question
from probgen.amortized.token_attention import SiteTokens
from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Now, Spec
from probgen.generative.flow_matching import even_shares
from probgen.generative.learned import Exactness, Learned
from probgen.generative.ode_solver import HeunSteps
from probgen.generative.standardisation import Standardisation
from probgen.nets import TimeFeatures, Transformer

if TYPE_CHECKING:
    from probgen.amortized.joint import AmortizedJoint

__all__ = ["JointFlow", "LearnedJoint"]

_BATCH = 1024


class JointNet(eqx.Module):
    """A velocity of each token.

    Attributes:
        data: Units of the tokens of data.
        units: Units of the tokens of parameters.
        net: The transformer.
    """

    data: Units
    units: Standardisation
    net: Transformer


class JointFlow(AmortizedFamily):
    """The joint law of the tokens of a program, and all its conditionals.

    Attributes:
        question: What the posterior among them answers.
        sites: The tokens, in order.
        seen: Which token sees which, shape ``(tokens, tokens)``.
        floating: Sites that cannot be given, since their coordinates depend on other sites.
        width: Features of a token.
        depth: Blocks of attention.
        heads: Heads of attention; divides ``width``.
        steps: Heun steps per draw.
    """

    question: Question
    sites: tuple[SiteTokens, ...]
    seen: Array
    floating: tuple[str, ...] = eqx.field(static=True, default=())
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=3)
    heads: int = eqx.field(static=True, default=4)
    steps: int = eqx.field(static=True, default=20)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(site.size for site in self.sites)

    @property
    def is_data(self) -> np.ndarray:
        """Which tokens are data, shape ``(tokens,)``."""
        return np.concatenate([np.full(site.size, site.data) for site in self.sites])

    def check(self, spec: Spec) -> None:
        for name in ("width", "depth", "heads", "steps"):
            if not is_count(getattr(self, name)):
                raise MethodError(f"Joint got {name}={getattr(self, name)!r}, expected an int of at least 1.")
        if self.width % self.heads:
            raise MethodError(f"Joint got width={self.width} and heads={self.heads}, expected a multiple. Change one.")

    def build(self, key: PRNGKey, spec: Spec) -> JointNet:
        given = TimeFeatures().size
        net = Transformer(key, 3, 1, self.tokens, self.width, self.depth, self.heads, given=given)
        return JointNet(Units(self.tokens), Standardisation((self.tokens,)), net)

    def adapt(self, key: PRNGKey, net: JointNet, x: Array, condition: Array | None) -> JointNet:
        units = net.data.adapted(x, jnp.ones(x.shape, bool)), net.units.adapted(x)
        return eqx.tree_at(lambda n: (n.data, n.units), net, units)

    def inward(self, net: JointNet, x: Array) -> Array:
        """Tokens in standard units."""
        return jnp.where(self.is_data, net.data(x), net.units.inward(x))

    def outward(self, net: JointNet, z: Array) -> Array:
        """Inverse of ``inward``."""
        data = net.data.loc.value + net.data.scale.value * jnp.sinh(z)
        return jnp.where(self.is_data, data, net.units.outward(z))

    def velocity(self, net: JointNet, z: Array, t: Array, known: Array) -> Array:
        """The velocity of the tokens that are not known; zero for those that are.

        Args:
            net: The network.
            z: Tokens in standard units, shape ``(tokens,)``; known ones at their values.
            t: Time.
            known: Which are known.
        """
        marks = known.astype(z.dtype)
        inputs = jnp.stack([(1 - marks) * z, marks * z, marks], -1)
        found = net.net(inputs, TimeFeatures()(t).astype(z.dtype), self.seen)[:, 0]
        return jnp.where(known, 0.0, found)

    def marks(self, key: PRNGKey) -> Array:
        """What is given in one datum of training, shape ``(tokens,)``."""
        key_which, key_marks, key_share, key_missing = jax.random.split(key, 4)
        data, shape = jnp.asarray(self.is_data), (self.tokens,)
        share = self.question.missing * jax.random.uniform(key_share)
        posterior = data & ~jax.random.bernoulli(key_missing, share, shape)
        uniform = jax.random.uniform(key_marks, shape)
        kinds = jnp.stack([jnp.zeros(shape, bool), posterior, ~data, uniform < 0.3, uniform < 0.7])
        return kinds[jax.random.randint(key_which, (), 0, len(kinds))]

    def loss(self, key: PRNGKey, net: JointNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_marks, key_time, key_noise = jax.random.split(key, 3)
        known = jax.vmap(self.marks)(jax.random.split(key_marks, len(x)))
        z = jax.vmap(lambda x: self.inward(net, x))(x).astype(jnp.float32)
        t, noise = even_shares(key_time, len(x)), jax.random.normal(key_noise, z.shape, z.dtype)
        noisy = jnp.where(known, z, (1 - t[:, None]) * z + t[:, None] * noise)
        found = jax.vmap(lambda z, t, k: self.velocity(net, z, t, k))(noisy, t, known)
        error = jnp.where(known, 0.0, found - (noise - z)) ** 2
        return error.sum() / jnp.maximum((~known).sum(), 1)

    def distribution(self, net: JointNet, spec: Spec) -> LearnedJoint:
        return LearnedJoint(self, spec, net)

    def method(self, law: Learned) -> AmortizedJoint:
        from probgen.amortized.joint import AmortizedJoint

        assert isinstance(law, LearnedJoint)
        return AmortizedJoint(law=law)


class LearnedJoint(Learned):
    """The joint law of the tokens; ``draw_given`` draws from any of its conditionals."""

    family: JointFlow
    net: JointNet
    offers: ClassVar[Mapping[str, Exactness]] = {"sample": Exactness.ode}

    def draw(self, key: PRNGKey) -> Array:
        nothing = jnp.zeros(self.family.tokens)
        return self.draw_given(key, nothing, jnp.zeros(self.family.tokens, bool))

    def draw_given(self, key: PRNGKey, x: Array, known: Array) -> Array:
        """All tokens, those that are known at their values, shape ``(tokens,)``.

        Args:
            key: Randomness.
            x: Tokens, shape ``(tokens,)``; anything where not known.
            known: Which are known.
        """
        family, net = self.family, self.net
        given = family.inward(net, jnp.where(known, x, 0.0).astype(jnp.float32))
        start = jnp.where(known, given, jax.random.normal(key, given.shape, given.dtype))
        end = HeunSteps(family.steps).solve(lambda t, z: family.velocity(net, z, t, known), start, 1.0, 0.0)
        return jnp.where(known, x, family.outward(net, end).astype(x.dtype))

    def draws_given(self, key: PRNGKey, x: Array, known: Array, count: int) -> Array:
        """Independent draws of all tokens, shape ``(count, tokens)``; see ``draw_given``."""
        keys = jax.random.split(key, count)
        return jax.lax.map(lambda k: self.draw_given(k, x, known), keys, batch_size=min(_BATCH, count))
