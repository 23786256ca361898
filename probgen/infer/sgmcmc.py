r"""Stochastic-gradient MCMC: chains that see a mini-batch of the data per step.

The program asks for mini-batches itself, ``numpyro.plate("row", N, subsample_size=n)`` with ``y[idx]`` inside; a
program without such a plate runs on all rows. There is no acceptance test, so the draws are *approximate*: the
discretisation and the noise of the gradient leave a bias that more draws at a constant step size do not remove. With an
unbiased estimate :math:`g` of the gradient, step :math:`\varepsilon`, noise :math:`\xi \sim N(0, I)`, on unconstrained
coordinates:

- SGLD: :math:`u \mathrel{+}= \varepsilon g + \sqrt{2\varepsilon}\,\xi` (Welling and Teh 2011). On a Gaussian posterior
  of precision :math:`\Lambda`, gradient noise of variance :math:`V` gives the variance
  :math:`\Lambda^{-1} (1 + \varepsilon V / 2) / (1 - \varepsilon\Lambda / 2)`.
- SGHMC: :math:`u \mathrel{+}= \varepsilon p,\ p \mathrel{+}= \varepsilon g - \alpha\varepsilon p +
  \sqrt{\varepsilon(2\alpha - \varepsilon\hat V)}\,\xi` (Chen, Fox and Guestrin 2014), momentum drawn anew after
  ``steps`` steps.
- SGNHT: the same with a friction that adapts, so that :math:`E|p|^2 = d` whatever the gradient noise (Ding et al.
  2014).
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import numpy as np
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.infer.method import KernelMethod, Need, Plan, Run
from probgen.infer.settings import check_count, check_positive
from probgen.kernels.loop import Drawn
from probgen.program.batch import BatchDensity
from probgen.program.density import Density
from probgen.program.model import Model

__all__ = ["SGHMC", "SGLD", "SGNHT"]

_NEEDS = frozenset({Need.gradient})


class _StochasticGradient(KernelMethod):
    """What the three share.

    A decaying schedule comes with ``log_weight`` in ``sample_stats``: log step sizes, normalised over all draws.
    """

    step_size: eqx.AbstractVar[float | None]
    decay: eqx.AbstractVar[float]
    delay: eqx.AbstractVar[float]

    takes_minibatches: ClassVar = True

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        if self.step_size is None:
            raise MethodError(
                f"step_size must be given: {type(self).__name__} does not adapt it. Start near a tenth of the squared "
                f"posterior scale of the unconstrained sites (SGLD), or a tenth of that scale (SGHMC, SGNHT)."
            )
        check_positive("step_size", self.step_size, 1e-3)
        check_positive("delay", self.delay, 100)
        if self.decay != 0 and not 0.5 < self.decay <= 1:
            raise MethodError(
                f"decay must be 0 (constant) or in (0.5, 1], got {self.decay!r}. 0.55 is usual; others do not converge."
            )

    def density(self, model: Model) -> Density:
        """See ``Method.density``."""
        return BatchDensity(model, jax.random.key(0))

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``."""
        run = super().run(key, density, plan)
        if self.decay:
            kept = run.stats["step_size"].copy()
            warm = plan.warmup // plan.thin if plan.keep_warmup and run.stored is None else 0
            kept[:, :warm] = 0.0
            with np.errstate(divide="ignore"):
                run.stats["log_weight"] = np.log(kept) - np.log(kept.sum())
        run.attrs["approximate"] = (
            "no acceptance test: the step size and the noise of the mini-batch gradients bias the draws"
        )
        return run

    def draw(
        self, key: PRNGKey, density: Density, *, draws: int, warmup: int, chains: int, thin: int | Array = 1
    ) -> Drawn:
        """See ``KernelMethod.draw``."""
        return super().draw(key, self.density(density.model), draws=draws, warmup=warmup, chains=chains, thin=thin)


class SGLD(_StochasticGradient):
    """Stochastic-gradient Langevin dynamics.

    Attributes:
        step_size: Step, in squared units of the unconstrained coordinates.
        decay: Power of the decay of the step size after the warm-up, 0 (constant) or in (0.5, 1].
        delay: Draws after which the decay sets in.
        backend: ``"blackjax"``.
    """

    step_size: float | None = eqx.field(static=True, default=None)
    decay: float = eqx.field(static=True, default=0.0)
    delay: float = eqx.field(static=True, default=100.0)
    backend: str = eqx.field(static=True, default="")

    name: ClassVar = "sgld"
    summary: ClassVar = "stochastic-gradient Langevin dynamics on mini-batches (approximate)"
    backends: ClassVar = ("blackjax",)
    needs: ClassVar = _NEEDS


class SGHMC(_StochasticGradient):
    """Stochastic-gradient Hamiltonian Monte Carlo.

    Attributes:
        step_size: Step, in units of the unconstrained coordinates.
        steps: Steps, each on its own mini-batch, per draw.
        friction: Friction, in inverse units of time; times ``step_size`` it must stay below 1.
        gradient_noise: Estimate of the variance of the gradient, taken off the injected noise; 0 takes off nothing.
        decay: Power of the decay of the step size after the warm-up, 0 (constant) or in (0.5, 1].
        delay: Draws after which the decay sets in.
        backend: ``"blackjax"``.
    """

    step_size: float | None = eqx.field(static=True, default=None)
    steps: int = eqx.field(static=True, default=10)
    friction: float = eqx.field(static=True, default=1.0)
    gradient_noise: float = eqx.field(static=True, default=0.0)
    decay: float = eqx.field(static=True, default=0.0)
    delay: float = eqx.field(static=True, default=100.0)
    backend: str = eqx.field(static=True, default="")

    name: ClassVar = "sghmc"
    summary: ClassVar = "stochastic-gradient Hamiltonian Monte Carlo on mini-batches (approximate)"
    backends: ClassVar = ("blackjax",)
    needs: ClassVar = _NEEDS

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        assert self.step_size is not None
        check_count("steps", self.steps, 1, 10)
        _check_friction(self.friction, self.step_size)
        if not 0 <= self.gradient_noise * self.step_size < 2 * self.friction:
            raise MethodError(
                f"gradient_noise times step_size must lie between 0 and twice the friction, {2 * self.friction:g}, got "
                f"{self.gradient_noise * self.step_size:g}. Lower step_size, or raise friction."
            )


class SGNHT(_StochasticGradient):
    """Stochastic-gradient Nose-Hoover thermostat: the friction adapts, from the second half of the warm-up on.

    Attributes:
        step_size: Step, in units of the unconstrained coordinates.
        scale: Posterior scale of the unconstrained coordinates, roughly: the thermostat's unit of length.
        friction: Friction in the first half of the warm-up, and strength of the injected noise, in units of ``scale``.
        decay: Power of the decay of the step size after the warm-up, 0 (constant) or in (0.5, 1].
        delay: Draws after which the decay sets in.
        backend: ``"blackjax"``.
    """

    step_size: float | None = eqx.field(static=True, default=None)
    scale: float = eqx.field(static=True, default=1.0)
    friction: float = eqx.field(static=True, default=1.0)
    decay: float = eqx.field(static=True, default=0.0)
    delay: float = eqx.field(static=True, default=100.0)
    backend: str = eqx.field(static=True, default="")

    name: ClassVar = "sgnht"
    summary: ClassVar = "stochastic-gradient Nose-Hoover thermostat on mini-batches (approximate)"
    backends: ClassVar = ("blackjax",)
    needs: ClassVar = _NEEDS

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        assert self.step_size is not None
        check_positive("scale", self.scale, 1.0)
        _check_friction(self.friction, self.step_size / self.scale)


def _check_friction(friction: float, step_size: float) -> None:
    check_positive("friction", friction, 1.0)
    if friction * step_size >= 1:
        raise MethodError(
            f"friction times step_size (over scale) must stay below 1, got {friction * step_size:g}. Lower one of them."
        )
