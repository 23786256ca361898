r"""Neural ratio estimation: a classifier that tells which parameters an observation came from.

With :math:`h(u, x)` a network, :math:`K` parameters and one observation, which is that of the :math:`k`-th of them with
probability :math:`\gamma / (K (1 + \gamma))` and of none with :math:`1 / (1 + \gamma)`, the classifier

.. math:: q(k \mid u_{1:K}, x) = \frac{\frac{\gamma}{K} e^{h(u_k, x)}}{1 + \frac{\gamma}{K} \sum_j e^{h(u_j, x)}}, \qquad
    q(0 \mid u_{1:K}, x) = \frac{1}{1 + \frac{\gamma}{K} \sum_j e^{h(u_j, x)}}

has the least expected log loss at :math:`h = \log p(x \mid u) / p(x)` (contrastive ratio estimation, NRE-C of Miller, Weniger
and Forré 2022; without the class 0 it would be known up to a function of :math:`x` only). The posterior is that of the
program's prior with :math:`h` in the place of the log likelihood. The other parameters come from the same batch.

:math:`h` is that of the linear-Gaussian law with the moments of the simulations, plus a network whose last layer begins at
zero: :math:`\log N(u; A e_0(x) + b, L L^\top) - \log N(u; m, S)`, with the prediction of ``encoded``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from probgen.amortized.amortized_family import AmortizedFamily
from probgen.amortized.amortized_likelihood import AmortizedLikelihood, check_sampler
from probgen.amortized.encoded import Prediction
from probgen.amortized.encoder import EncoderNet, ObservationEncoder
from probgen.amortized.estimator import Estimator
from probgen.amortized.learned_likelihood import LearnedLikelihood
from probgen.amortized.question import Question
from probgen.amortized.task import Task
from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.training import fit
from probgen.infer.method import Method
from probgen.nets.constant import Constant
from probgen.nets.mlp import MLP
from probgen.program.density import Density

__all__ = ["NRE", "Contrast", "LearnedRatio"]


class Seen(eqx.Module):
    """What the classifier has read of an observation.

    Attributes:
        embedding: Of the network.
        mean: Of the parameters, as predicted linearly.
        whitening: Inverse Cholesky factors of the covariance that is left of the parameters, and of that before, shape
            ``(2, dim, dim)``.
    """

    embedding: Array
    mean: Array
    whitening: Array


class RatioNet(eqx.Module):
    """See ``Contrast``.

    Attributes:
        encoder: Reads observations.
        prediction: Of the parameters from the numbers of an observation.
        loc: Mean of the parameters, shape ``(dim,)``.
        root: Cholesky factor of their covariance.
        body: The network.
    """

    encoder: EncoderNet
    prediction: Prediction
    loc: Constant
    root: Constant
    body: MLP

    def read(self, condition: Array) -> Seen:
        """What is needed of a packed observation."""
        p = self.prediction
        mean = p.slope.value @ self.encoder.numbers(condition) + p.offset.value
        roots, unit = (p.root.value, self.root.value), jnp.eye(len(p.offset.value), dtype=jnp.float32)
        whitening = jnp.stack([solve_triangular(root, unit, lower=True) for root in roots])
        return Seen(self.encoder(condition), mean, whitening)

    def log_ratio(self, u: Array, read: Seen) -> Scalar:
        """:math:`h`, in the precision of ``u``."""
        dtype = u.dtype
        after, before = read.whitening.astype(dtype)
        rest, z = after @ (u - read.mean.astype(dtype)), before @ (u - self.loc.value)
        base = 0.5 * (jnp.sum(z**2) - jnp.sum(rest**2))
        base = base + jnp.sum(jnp.log(jnp.diagonal(after))) - jnp.sum(jnp.log(jnp.diagonal(before)))
        seen = jnp.concatenate([z, jnp.tanh(z), jnp.arcsinh(rest), read.embedding.astype(dtype)])
        return base + self.body(seen)[0]


class Contrast(AmortizedFamily):
    """A classifier of parameters given observations, packed vectors of a reading.

    Attributes:
        encoder: What reads the observations.
        contrasts: :math:`K`, parameters per observation.
        gamma: :math:`\\gamma`, odds that the observation belongs to one of them.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
    """

    encoder: ObservationEncoder
    contrasts: int = eqx.field(static=True, default=8)
    gamma: float = eqx.field(static=True, default=1.0)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)

    def check(self, spec: Spec) -> None:
        self.encoder.check()
        self.encoder.question.check()
        for name, least in (("contrasts", 2), ("width", 1), ("depth", 1)):
            if not is_count(getattr(self, name)) or getattr(self, name) < least:
                raise MethodError(
                    f"NRE got {name}={getattr(self, name)!r}, expected an int of at least {least}. Change {name}."
                )
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise MethodError(f"NRE got gamma={self.gamma!r}, which is a ratio of odds, expected > 0. 1 is usual.")

    def build(self, key: PRNGKey, spec: Spec) -> RatioNet:
        key_encoder, key_body = jax.random.split(key)
        (dim,) = spec.shape
        return RatioNet(
            self.encoder.build(key_encoder),
            Prediction(dim, self.encoder.numbers),
            Constant(jnp.zeros(dim, jnp.float32)),
            Constant(jnp.eye(dim, dtype=jnp.float32)),
            MLP(key_body, 3 * dim + self.encoder.size, 1, self.width, self.depth, zero=True),
        )

    def adapt(self, key: PRNGKey, net: RatioNet, x: Array, condition: Array | None) -> RatioNet:
        assert condition is not None
        encoder = net.encoder.adapted(condition)
        prediction = net.prediction.adapted(x, jax.vmap(encoder.numbers)(condition))
        u = x.astype(float)
        scale = jnp.where(u.std(0) > 0, u.std(0), 1.0)
        z = (u - u.mean(0)) / scale
        root = scale[:, None] * jnp.linalg.cholesky(z.T @ z / len(z) + 1e-9 * jnp.eye(u.shape[1]))
        loc, root = u.mean(0).astype(jnp.float32), root.astype(jnp.float32)
        return dataclasses.replace(net, encoder=encoder, prediction=prediction, loc=Constant(loc), root=Constant(root))

    def loss(self, key: PRNGKey, net: RatioNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        assert condition is not None
        condition = jax.vmap(self.encoder.hide)(jax.random.split(key, len(condition)), condition)
        read = jax.vmap(net.read)(condition)
        # Rows are in random order, so those that follow are independent draws of the prior.
        others = jnp.stack([jnp.roll(x, -i, 0) for i in range(self.contrasts + 1)], 1)
        h = jax.vmap(lambda us, r: jax.vmap(lambda u: net.log_ratio(u, r))(us))(others, read)
        return contrastive_loss(h, self.gamma)

    def distribution(self, net: RatioNet, spec: Spec) -> LearnedRatio:
        return LearnedRatio(self, spec, net)

    def method(self, law: Learned) -> AmortizedLikelihood:
        assert isinstance(law, LearnedLikelihood)
        return AmortizedLikelihood(law=law)


def contrastive_loss(h: Array, gamma: float) -> Scalar:
    """The loss of NRE-C.

    Args:
        h: Log ratios, shape ``(batch, 1 + contrasts)``: the first at the parameters that the observation came from, the
            others at independent ones.
        gamma: Odds that an observation belongs to one of the parameters.
    """
    count = h.shape[1] - 1
    scaled = h + math.log(gamma / count)
    none = -jax.nn.softplus(jax.nn.logsumexp(scaled[:, 1:], 1))
    first = scaled[:, 0] - jax.nn.softplus(jax.nn.logsumexp(scaled[:, :-1], 1))
    return -jnp.mean(none + gamma * first) / (1 + gamma)


class LearnedRatio(LearnedLikelihood):
    """A learned ratio of the likelihood to the evidence."""

    offers: ClassVar[dict[str, Exactness]] = {}
    normalised: ClassVar = False

    family: Contrast
    net: RatioNet

    @property
    def question(self) -> Question:
        """See ``LearnedLikelihood.question``."""
        return self.family.encoder.question

    @property
    def estimator(self) -> str:
        """See ``LearnedLikelihood.estimator``."""
        return "NRE"

    def about(self, density: Density) -> SeenRatio:
        """See ``LearnedLikelihood.about``."""
        return SeenRatio(self.net, _read(self.net, self.question.observation(density)))


@eqx.filter_jit
def _read(net: RatioNet, condition: Array) -> Seen:
    return net.read(condition)


class SeenRatio(eqx.Module):
    """The log ratio of one observation.

    Attributes:
        net: The classifier.
        read: What it has read.
    """

    net: RatioNet
    read: Seen

    def __call__(self, u: Array) -> Scalar:
        """See ``LogLikelihood``."""
        return self.net.log_ratio(u, self.read)


class NRE(Estimator):
    """Neural ratio estimation, NRE-C: the ratio of likelihood to evidence, for any observation.

    Attributes:
        contrasts: Parameters per observation that the classifier must tell apart, from the same batch.
        gamma: Odds that the observation belongs to one of them.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
        encoder_width: Features of a row (of a plate or a scan) inside of the encoder.
        encoder_depth: Blocks of attention of the encoder.
        sampler: How posteriors are sampled; see ``AmortizedLikelihood``.
        training: Steps, rates, batches; the estimator's own defaults if ``None``.
    """

    contrasts: int = eqx.field(static=True, default=8)
    gamma: float = eqx.field(static=True, default=1.0)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    encoder_width: int = eqx.field(static=True, default=64)
    encoder_depth: int = eqx.field(static=True, default=2)
    sampler: Method | None = eqx.field(static=True, default=None)
    training: Training | None = eqx.field(static=True, default=None)

    @property
    def usual_training(self) -> Training:
        """How it is trained if nothing else is said."""
        return Training(steps=5000, learning_rate=1e-3, batch=256, weight_decay=1e-2)

    def check(self) -> None:
        """See ``Estimator.check``."""
        super().check()
        if self.sampler is not None:
            check_sampler(self.sampler)
        batch = (self.training or self.usual_training).batch
        if is_count(self.contrasts) and self.contrasts >= batch:
            raise MethodError(
                f"contrasts={self.contrasts} parameters come from one batch, which has {batch}. Use fewer, or "
                f"training=pg.generative.Training(batch={2 * self.contrasts})."
            )

    def fit(self, key: jax.Array, task: Task, *, store: Any = None, progress: bool = False) -> AmortizedLikelihood:
        """See ``Estimator.fit``."""
        encoder = ObservationEncoder(task.question, self.encoder_width, self.encoder_depth)
        family = Contrast(encoder, self.contrasts, self.gamma, self.width, self.depth)
        training = self.training or self.usual_training
        law = fit(family, task.simulations.u, task.packed, training=training, seed=key, store=store, progress=progress)
        assert isinstance(law, LearnedRatio)
        return AmortizedLikelihood(law=law, sampler=self.sampler)
