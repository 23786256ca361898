r"""Progressive distillation: a deterministic sampler of half the steps, as often as one likes.

A step of DDIM from :math:`t` to :math:`s` with mean :math:`m` is

.. math:: x_s = \alpha_s m + \frac{\sigma_s}{\sigma_t} (x_t - \alpha_t m), \qquad\text{so}\qquad
          m^\star = \frac{x_s - \frac{\sigma_s}{\sigma_t} x_t}{\alpha_s - \frac{\sigma_s}{\sigma_t}\alpha_t}

is the mean with which one step reaches what the teacher reaches with two. The student begins with the teacher's weights
and regresses on :math:`m^\star`, at the times of its own grid.

Reference: Salimans and Ho (2022), "Progressive distillation for fast sampling of diffusion models".
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.diffusion import Diffusion, LearnedDenoiser, LearnedDiffusion
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.path import Time, even_log_snr
from probgen.generative.sampler import DDIM

__all__ = ["ProgressiveDistillation", "two_as_one"]


class ProgressiveDistillation(Family):
    """A diffusion model that draws in ``steps`` steps of DDIM what its teacher draws in twice as many.

    The result is a ``LearnedDiffusion``, the next teacher, and no longer needs this one. Its network is right for its own
    steps only: ``log_prob``, ``score`` and other samplers are worth less with every halving.

    Attributes:
        teacher: A fitted diffusion model, at first as it comes from ``Diffusion`` or ``GuidedDistillation``.
        steps: Steps of the student.
    """

    teacher: LearnedDiffusion
    steps: int = eqx.field(static=True)

    training: ClassVar[Training] = Training(steps=2000, learning_rate=5e-4)

    def check(self, spec: Spec) -> None:
        if not isinstance(self.teacher, LearnedDiffusion):
            raise MethodError(
                f"teacher is a {type(self.teacher).__name__}, expected a fitted Diffusion. Fit GuidedDistillation or "
                f"Diffusion first."
            )
        if not is_count(self.steps):
            raise MethodError(f"steps must be an int of at least 1, got {self.steps!r}. Use 16, then 8, 4, 2.")
        if (spec.shape, spec.condition) != (self.teacher.spec.shape, self.teacher.spec.condition):
            raise MethodError(
                f"data and condition have shapes {spec.shape} and {spec.condition}, those of the teacher "
                f"{self.teacher.spec.shape} and {self.teacher.spec.condition}. Give data like the teacher's."
            )

    @property
    def _student(self) -> Diffusion:
        return dataclasses.replace(self.teacher.family, sampler=DDIM(), sampling_steps=self.steps)

    def build(self, key: PRNGKey, spec: Spec) -> eqx.Module:
        return self._student.build(key, spec)

    def adapt(self, key: PRNGKey, net: eqx.Module, x: Array, condition: Array | None) -> eqx.Module:
        return self.teacher.net

    def loss(self, key: PRNGKey, net: eqx.Module, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_time, key_noise = jax.random.split(key)
        x = jax.vmap(net.units.inward)(x)  # pyright: ignore[reportAttributeAccessIssue]
        path = self.teacher.family.path
        with jax.ensure_compile_time_eval():
            times = even_log_snr(path, 2 * self.steps).astype(x.dtype)
        i = 2 * jax.random.randint(key_time, (x.shape[0],), 0, self.steps)
        noise = jax.random.normal(key_noise, x.shape, x.dtype)

        def one(x: Array, noise: Array, i: Array, c: Array | None) -> Scalar:
            alpha, sigma = path(times[i])
            noisy = alpha * x + sigma * noise
            teacher = LearnedDenoiser(net=self.teacher.net.net, path=path, condition=c)
            student = LearnedDenoiser(net=net.net, path=path, condition=c)  # pyright: ignore[reportAttributeAccessIssue]
            target = jax.lax.stop_gradient(two_as_one(teacher, noisy, times[i], times[i + 1], times[i + 2]))
            return (1 + (alpha / sigma) ** 2) * jnp.mean((student.mean(noisy, times[i]) - target) ** 2)

        return jnp.mean(jax.vmap(one)(x, noise, i, condition))

    def distribution(self, net: eqx.Module, spec: Spec) -> LearnedDiffusion:
        return self._student.distribution(net, spec)  # pyright: ignore[reportArgumentType]


def two_as_one(denoiser: Denoiser, x: Array, t: Time, middle: Time, s: Time) -> Array:
    """The mean with which one step of DDIM from ``t`` to ``s`` reaches what two steps reach by way of ``middle``.

    Args:
        denoiser: Whose steps.
        x: One value at time ``t``.
        t: Its time.
        middle: Where the first of the two steps ends.
        s: The time to reach.
    """
    step = DDIM().step
    key = jax.random.key(0)  # not used by a deterministic step
    half, _ = step(key, denoiser, x, jnp.asarray(t), jnp.asarray(middle), None)
    reached, _ = step(key, denoiser, half, jnp.asarray(middle), jnp.asarray(s), None)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.path(t), denoiser.path(s)
    kept = sigma_s / sigma_t
    return (reached - kept * x) / (alpha_s - kept * alpha_t)
