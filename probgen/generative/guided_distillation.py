r"""Distilled guidance: one network for a guided pair, whatever the weight.

Guidance mixes two denoisers, :math:`m_w = (1 - w)\, m_{uncond} + w\, m_{cond}`, at two evaluations a step. The student
is a diffusion model that is *given* the weight: it minimises

.. math:: E\ (1 + \tilde\sigma^{-2})\, \lVert m_{student}(x_t, t, w) - m_w(x_t, t) \rVert^2

over noisy data, so that its flow is that of ``Guidance(cond, uncond, w)`` at one evaluation. ``ProgressiveDistillation``
then halves its steps. Neither makes guidance right: what is learned is the guided flow, which does not follow the
geometric average of the two laws (``Guided`` does).

Reference: Meng et al. (2023), "On distillation of guided diffusion models".
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.diffusion import Diffusion, LearnedDenoiser, LearnedDiffusion, denoised
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.path import Path, Time, even_log_snr
from probgen.generative.standardisation import Standardisation

__all__ = ["GuidedDistillation"]

LEVELS = 256


class GuidedDistillation(Family):
    """One diffusion model that does what a guided pair does.

    Fit it with ``condition=`` rows that hold the weight ``w`` first, drawn over the range where it will be used, then
    the condition of ``cond`` if that was fitted with one. The result is a ``LearnedDiffusion``, and no longer needs the
    teachers.

    Attributes:
        cond: Teacher given the condition: a denoiser, or a fitted diffusion model.
        uncond: Teacher without it, of the same path and in the same units.
        student: The student; its path is that of the teachers.
    """

    cond: Denoiser | LearnedDiffusion
    uncond: Denoiser | LearnedDiffusion
    student: Diffusion = Diffusion()

    training: ClassVar[Training] = Training(steps=5000)

    def check(self, spec: Spec) -> None:
        extra = 0
        for name, teacher in (("cond", self.cond), ("uncond", self.uncond)):
            if not isinstance(teacher, Denoiser | LearnedDiffusion):
                raise MethodError(
                    f"{name} is a {type(teacher).__name__}, expected a denoiser or a fitted Diffusion. Give one of these."
                )
            shape, path = _shape_and_path(teacher)
            if shape != spec.shape or path != self.student.path:
                raise MethodError(
                    f"{name} has data of shape {shape} on {path}; the data have {spec.shape} and the student has "
                    f"{self.student.path}. Write student=Diffusion(path=...) with the path of the teachers."
                )
        if isinstance(self.uncond, LearnedDiffusion) and self.uncond.spec.condition is not None:
            raise MethodError(
                "uncond was fitted with a condition. Give a model without one, or model.given(...).denoiser."
            )
        if isinstance(self.cond, LearnedDiffusion) and self.cond.spec.condition is not None:
            (extra,) = self.cond.spec.condition if len(self.cond.spec.condition) == 1 else (-1,)
            if extra < 0:
                raise MethodError(f"the condition of cond has shape {self.cond.spec.condition}, expected a vector.")
        if not eqx.tree_equal(_units(self.cond, spec), _units(self.uncond, spec)):
            raise MethodError(
                "cond and uncond have different units, so that noise is not the same noise for both. Fit both with the "
                "same Standardisation, or give denoisers."
            )
        if spec.condition != (1 + extra,):
            raise MethodError(
                f"the condition has shape {spec.condition}, expected {(1 + extra,)}: the weight, then the condition of "
                f"cond. Give fit(..., condition=...) a weight per datum."
            )

    def build(self, key: PRNGKey, spec: Spec) -> eqx.Module:
        return self.student.build(key, spec)

    def adapt(self, key: PRNGKey, net: eqx.Module, x: Array, condition: Array | None) -> eqx.Module:
        return eqx.tree_at(lambda n: n.units, net, _units(self.cond, Spec(x.shape[1:])))

    def teacher(self, x: Array, t: Time, condition: Array) -> Array:
        """The guided mean of one noisy value."""
        given = condition[1:] if isinstance(self.cond, LearnedDiffusion) and self.cond.spec.condition else None
        cond, uncond = _mean(self.cond, x, t, given), _mean(self.uncond, x, t, None)
        return (1 - condition[0]) * uncond + condition[0] * cond

    def loss(self, key: PRNGKey, net: eqx.Module, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_time, key_noise = jax.random.split(key)
        x = jax.vmap(net.units.inward)(x)  # pyright: ignore[reportAttributeAccessIssue]
        path = self.student.path
        with jax.ensure_compile_time_eval():
            times = even_log_snr(path, LEVELS).astype(x.dtype)
        count = x.shape[0]
        share = (jnp.arange(count) + jax.random.uniform(key_time, (count,), x.dtype)) / count
        t = jnp.interp(LEVELS * share, jnp.arange(LEVELS + 1), times)
        noise = jax.random.normal(key_noise, x.shape, x.dtype)

        def one(x: Array, noise: Array, t: Array, c: Any) -> Scalar:
            alpha, sigma = path(t)
            noisy, level = alpha * x + sigma * noise, sigma / alpha
            mean = denoised(net.net, noisy / alpha, level, c)  # pyright: ignore[reportAttributeAccessIssue]
            return (1 + level**-2) * jnp.mean((mean - jax.lax.stop_gradient(self.teacher(noisy, t, c))) ** 2)

        return jnp.mean(jax.vmap(one)(x, noise, t, condition))

    def distribution(self, net: eqx.Module, spec: Spec) -> LearnedDiffusion:
        return self.student.distribution(net, spec)  # pyright: ignore[reportArgumentType]


def _shape_and_path(teacher: Denoiser | LearnedDiffusion) -> tuple[tuple[int, ...], Path]:
    if isinstance(teacher, LearnedDiffusion):
        return teacher.spec.shape, teacher.family.path
    return teacher.shape, teacher.path


def _units(teacher: Denoiser | LearnedDiffusion, spec: Spec) -> Standardisation:
    """Those of the teacher; a bare denoiser is taken as it is, with data of the order of 1."""
    return teacher.units if isinstance(teacher, LearnedDiffusion) else Standardisation(spec.shape)


def _mean(teacher: Denoiser | LearnedDiffusion, x: Array, t: Time, given: Array | None) -> Array:
    if isinstance(teacher, LearnedDiffusion):
        teacher = LearnedDenoiser(net=teacher.net.net, path=teacher.family.path, condition=given)
    return teacher.mean(x, t)
