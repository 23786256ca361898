r"""Replacement: a linear part of the sample is taken from a noisy reference at every step.

:math:`P` is a projection (linear, :math:`P P = P`). After each step of the ancestral sampler to time :math:`s`,

.. math:: x_s \leftarrow P (\alpha_s y + \sigma_s \varepsilon) + (I - P)\, x_s

and at the data end the reference :math:`y` itself is put in: the sample has :math:`P x = P y` up to rounding. With
:math:`P` the entries that are known (``kept(mask)``) this is RePaint (Lugmayr et al. 2022); with :math:`P` a low-pass
filter (``block_mean(4)``) it is ILVR (Choi et al. 2021).

A single pass is a crude approximation of the law given :math:`P x = P y`: what was filled in at a high noise level knew
a noisy reference and is never looked at again. RePaint goes back: a step, made of ``jump`` smaller ones, is undone by
new noise and taken again, ``repeats`` times. One such round is a Markov chain that leaves :math:`q_s` as it is if
nothing is replaced, and whose moves become small with the step; replaced and repeated it is a Langevin sampler of the
rest given what is known, up to an error of the order of the step. So the law converges to the conditional one as
``repeats`` grow *and* steps shrink, not with either alone; modes that are far apart at small noise must be settled while
the noise is large, where the error is largest. In ``benchmarks/guidance.py`` one round leaves three quarters of what a
known entry moves, and 16 rounds a third.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.denoiser import Denoiser
from probgen.generative.guidance import Linear, repeated
from probgen.generative.sampler import DDIM, Sampler

__all__ = ["Replacement"]


class Replacement(Sampler):
    """The ancestral sampler with a part of the data replaced by that of a reference.

    Attributes:
        reference: :math:`y`, the shape of the data; only its projection counts.
        projection: :math:`P`, such as ``kept(mask)`` or ``block_mean(factor)``.
        repeats: How often each step is taken.
        jump: Number of smaller steps, evenly spaced in time, in one step: what is undone at once.
    """

    reference: Array
    projection: Linear = eqx.field(static=True)
    repeats: int = eqx.field(static=True, default=1)
    jump: int = eqx.field(static=True, default=1)

    def __init__(self, reference: Any, projection: Linear, *, repeats: int = 1, jump: int = 1) -> None:
        self.reference = jnp.asarray(reference, float)
        self.projection, self.repeats, self.jump = projection, repeats, jump

    def __check_init__(self) -> None:
        for name in ("repeats", "jump"):
            value = getattr(self, name)
            if not is_count(value):
                raise MethodError(f"Replacement got {name}={value!r}, expected an int of at least 1. Change {name}.")
        with jax.ensure_compile_time_eval():
            z = jnp.asarray(np.random.default_rng(0).normal(size=self.reference.shape))
            once = self.projection(z)
            good = once.shape == z.shape and jnp.allclose(self.projection(once), once, atol=1e-4)
            if not (
                good and jnp.allclose(self.projection(1 - 2 * z), self.projection(1 + 0 * z) - 2 * once, atol=1e-4)
            ):
                raise MethodError(
                    "the projection of Replacement must be linear and the same when applied twice. Use kept(mask) or "
                    "block_mean(factor)."
                )

    @property
    def random(self) -> bool:
        return True

    def start(self, denoiser: Denoiser, x: Array, t: Array) -> None:
        if denoiser.shape != self.reference.shape:
            raise MethodError(
                f"the reference of Replacement has shape {self.reference.shape}, the data {denoiser.shape}. Give one "
                f"whole datum, with anything where it is not known."
            )

    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: None) -> tuple[Array, None]:
        path, rule = denoiser.path, DDIM(eta=1.0)
        times = jnp.linspace(t, s, self.jump + 1)

        def small(x: Array, at: tuple[PRNGKey, Array, Array]) -> tuple[Array, None]:
            key, t, s = at
            key_move, key_reference = jax.random.split(key)
            moved, _ = rule.step(key_move, denoiser, x, t, s, None)
            alpha, sigma = path(s)
            noisy = alpha * self.reference + sigma * jax.random.normal(key_reference, x.shape, x.dtype)
            known = jnp.where(s > path.start, noisy, self.reference)
            return moved + self.projection(known - moved), None

        def advance(key: PRNGKey, x: Array) -> Array:
            if self.jump == 1:
                return small(x, (key, t, s))[0]
            return jax.lax.scan(small, x, (jax.random.split(key, self.jump), times[:-1], times[1:]))[0]

        return repeated(key, path, advance, x, t, s, self.repeats), None
