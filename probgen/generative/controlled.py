r"""Conditional control added to a diffusion model by reinforcement learning.

A denoiser of :math:`p(x)` (or of :math:`p(x \mid c)`) is given, and data with labels :math:`y`; wanted are draws from

.. math:: p(x \mid y) \propto p(x)\, p(y \mid x)^\gamma.

Zhao et al. (2024, "Adding conditional control to diffusion models with reinforcement learning") learn :math:`p(y \mid
x)` from the labelled data, and tune the sampler for it as a reward, with the divergence from the given sampler as its
price. The step of the ancestral chain is shifted by :math:`\sqrt v\, g_\theta(x_t, t, y)`,

.. math:: x_s = a x_t + b\, m(x_t) + \sqrt v\, (g_\theta + z), \qquad
          \min_\theta\ E \Bigl[\tfrac12 \sum \lVert g_\theta \rVert^2 - \gamma \log p(y \mid x_0)\Bigr],

which is the relative entropy between chains less the reward, by gradients through the chain. Over all Markov chains the
minimum is the chain that ends in :math:`p(x)\, p(y \mid x)^\gamma` exactly, since where it begins tells nothing of where
it ends. What is left is the fit of the network, and that kernels are Gaussian, an error that falls with the number of
steps. The shift is :math:`g = \sqrt v\, \nabla \log p(y \mid x_t)` there: what a classifier of noisy values would give.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.path import even_log_snr
from probgen.nets import MLP, TimeFeatures
from probgen.nets.constant import Constant

__all__ = ["Controlled", "LearnedControlled"]


class _Net(eqx.Module):
    label: MLP
    control: MLP
    loc: Constant
    scale: Constant


class Controlled(Family):
    r"""A diffusion model tuned to labels: ``fit(Controlled(denoiser), x, condition=y)``.

    Attributes:
        denoiser: The given model; data are in its units.
        classes: Number of classes, with labels as rows of ``classes`` zeros and a one; 0 for labels that are real
            vectors, whose law given the data is taken as normal with learned mean and deviation.
        power: :math:`\gamma`.
        steps: Steps of the chain, in training and in drawing.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
    """

    training: ClassVar = Training(steps=1500, batch=128, learning_rate=3e-3)

    denoiser: Denoiser
    classes: int = eqx.field(static=True, default=0)
    power: float = eqx.field(static=True, default=1.0)
    steps: int = eqx.field(static=True, default=30)
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)

    def check(self, spec: Spec) -> None:
        if not isinstance(self.denoiser, Denoiser):
            raise MethodError(
                f"Controlled got a {type(self.denoiser).__name__}, expected a denoiser, such as model.denoiser of a "
                f"fitted Diffusion."
            )
        if spec.shape != self.denoiser.shape:
            raise DataError(f"data have shape {spec.shape}, the denoiser's {self.denoiser.shape}. Give both the same.")
        if spec.condition is None:
            raise MethodError("Controlled needs labels. Write fit(Controlled(denoiser), data, condition=labels).")
        if self.classes and (self.classes < 2 or spec.condition != (self.classes,)):
            raise DataError(
                f"Controlled(classes={self.classes}) got labels of shape {spec.condition}, expected "
                f"({self.classes},): a one in the place of the class. Use jax.nn.one_hot."
            )
        if not (math.isfinite(self.power) and self.power > 0):
            raise MethodError(f"Controlled got power={self.power!r}, expected a positive number. Use power=1.")
        for name in ("steps", "width", "depth"):
            value = getattr(self, name)
            if not is_count(value):
                raise MethodError(f"Controlled got {name}={value!r}, expected an int of at least 1. Change {name}.")

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        key_label, key_control = jax.random.split(key)
        dim, given = math.prod(spec.shape), math.prod(spec.condition or ())
        outputs = given if self.classes else 2 * given
        zeros, ones = jnp.zeros(given, jnp.float32), jnp.ones(given, jnp.float32)
        return _Net(
            MLP(key_label, dim, outputs, self.width, self.depth, zero=True),
            MLP(key_control, dim + TimeFeatures().size + given, dim, self.width, self.depth, zero=True),
            Constant(zeros),
            Constant(ones),
        )

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        assert condition is not None  # check has looked
        if self.classes:
            return net
        flat = condition.reshape(x.shape[0], -1)
        loc, scale = flat.mean(0), flat.std(0)
        scale = jnp.where(scale > 1e-6 * jnp.abs(loc), scale, 1.0)
        return eqx.tree_at(lambda n: (n.loc.value, n.scale.value), net, (loc, scale))

    def log_label(self, net: _Net, x: Array, y: Array) -> Scalar:
        """The learned log probability of a label given a clean value."""
        out = net.label(x.reshape(-1))
        if self.classes:
            return jnp.sum(y * jax.nn.log_softmax(out))
        mean, log_scale = jnp.split(out, 2)
        loc, scale = net.loc.value, net.scale.value
        deviation = jnp.exp(log_scale)
        off = ((y.reshape(-1) - loc) / scale - mean) / deviation
        return -jnp.sum(0.5 * off**2 + log_scale + jnp.log(scale) + 0.5 * math.log(2 * math.pi))

    def run(self, key: PRNGKey, net: _Net, y: Array) -> tuple[Array, Scalar]:
        """One chain: where it ends, and what it has paid, half the sum of squared shifts."""
        key_noise, key_steps = jax.random.split(key)
        path, standard = self.denoiser.path, (y.reshape(-1) - net.loc.value) / net.scale.value
        times = even_log_snr(path, self.steps)

        def one(carry: tuple[Array, Scalar], at: tuple[PRNGKey, Array, Array]) -> tuple[tuple[Array, Scalar], None]:
            (x, paid), (key, t, s) = carry, at
            a, b, v = self.denoiser.ancestral(t, s)
            alpha, sigma = path(t)
            features = TimeFeatures()(jnp.log(sigma / alpha) / 4)
            size = jnp.sqrt(alpha**2 + sigma**2)
            given = jnp.concatenate([x.reshape(-1) / size, features, standard])
            # The shift in units of the noise; root of the step, so that its cost does not depend on their number.
            root = jnp.sqrt((path.log_snr(s) - path.log_snr(t)) / 2)
            shift = root * net.control(given).reshape(x.shape)
            z = jax.random.normal(key, x.shape, x.dtype)
            moved = a * x + b * self.denoiser.mean(x, t) + jnp.sqrt(v) * (shift + z)
            return (moved.astype(x.dtype), paid + 0.5 * jnp.sum(shift**2)), None

        noise = self.denoiser.draw_noise(key_noise)
        keys = jax.random.split(key_steps, self.steps)
        begun = (noise, jnp.zeros((), noise.dtype))
        return jax.lax.scan(one, begun, (keys, times[:-1], times[1:]))[0]

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        assert condition is not None  # check has looked
        label_loss = -jnp.mean(jax.vmap(lambda x, y: self.log_label(net, x, y))(x, condition))
        fixed = eqx.tree_at(lambda n: n.label, net, jax.lax.stop_gradient(net.label))

        def tuned(key: PRNGKey, y: Array) -> Scalar:
            end, paid = self.run(key, fixed, y)
            return paid - self.power * self.log_label(fixed, end, y)

        return label_loss + jnp.mean(jax.vmap(tuned)(jax.random.split(key, x.shape[0]), condition))

    def distribution(self, net: _Net, spec: Spec) -> LearnedControlled:
        return LearnedControlled(self, spec, net)


class LearnedControlled(Learned):
    """The law of the tuned sampler, given a label. It has draws alone."""

    offers: ClassVar = {"sample": Exactness.estimate}

    family: Controlled
    net: Any

    def draw(self, key: PRNGKey) -> Array:
        assert self.condition is not None
        return self.family.run(key, self.net, self.condition)[0]

    def log_label(self, x: Array) -> Array:
        """The learned log probability of the label given a clean value, shape that of ``x`` without the event."""
        self._ready("sample")

        def one(here: LearnedControlled, x: Array) -> Scalar:
            assert here.condition is not None
            return here.family.log_label(here.net, x, here.condition)

        return self.pointwise(one, (jnp.asarray(x), self.event_dim))
