r"""Principal components as codes: the linear autoencoder, solved.

With data of mean :math:`m` and covariance :math:`U \Lambda U^\top`, eigenvalues falling, the code of length :math:`k` is
:math:`z = \Lambda_k^{-1/2} U_k^\top (x - m)`: mean 0, covariance the identity, and
:math:`m + U_k \Lambda_k^{1/2} z` has the least squared error of all linear codes of that length, the sum of the other
eigenvalues.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.autoencoder import check_without_condition
from probgen.generative.family import Solved, Spec, Training
from probgen.generative.learned import Exactness
from probgen.generative.learned_encoder import LearnedEncoder
from probgen.nets import Constant

__all__ = ["LearnedComponents", "PrincipalComponents"]


class Net(eqx.Module):
    """Mean, shape ``(dim,)``; columns of ``axes`` are the leading eigenvectors; ``scales`` the roots of eigenvalues."""

    mean: Constant
    axes: Constant
    scales: Constant


class PrincipalComponents(Solved):
    """The leading principal components as code.

    Attributes:
        size: Their number.
    """

    size: int = eqx.field(static=True, default=2)

    training: ClassVar[Training] = Training(validation=0.0)

    def check(self, spec: Spec) -> None:
        if len(spec.shape) != 1 or not 1 <= self.size <= spec.shape[0]:
            raise MethodError(
                f"PrincipalComponents got size={self.size} for data of shape {spec.shape}, expected vectors with at "
                f"least that many entries."
            )
        check_without_condition(self, spec)

    def build(self, key: PRNGKey, spec: Spec) -> Net:
        (dim,) = spec.shape
        parts = (dim,), (dim, self.size), (self.size,)
        return Net(*(Constant(jnp.zeros(shape, jnp.float32)) for shape in parts))

    def solve(self, key: PRNGKey, net: Net, x: Array, condition: Array | None) -> Net:
        mean = x.mean(0)
        values, axes = jnp.linalg.eigh(jnp.atleast_2d(jnp.cov(x, rowvar=False)))
        if not float(values[-self.size]) > 1e-7 * float(values[-1]):
            raise MethodError(
                f"the data have variance in fewer than {self.size} directions, so codes cannot be scaled. Lower size."
            )
        parts = mean, axes[:, ::-1][:, : self.size], jnp.sqrt(values[::-1][: self.size])
        return Net(*(Constant(part.astype(jnp.float32)) for part in parts))

    def distribution(self, net: Net, spec: Spec) -> LearnedComponents:
        return LearnedComponents(self, spec, net)


class LearnedComponents(LearnedEncoder):
    """Codes by principal components; it only encodes and decodes."""

    offers: ClassVar[Mapping[str, Exactness]] = {}

    family: PrincipalComponents
    net: Net

    @property
    def code(self) -> Spec:
        return Spec((self.family.size,))

    def encode_at(self, x: Array) -> Array:
        return (x - self.net.mean.value) @ self.net.axes.value / self.net.scales.value

    def decode_at(self, code: Array, noise: Array) -> Array:
        return self.net.mean.value + self.net.axes.value @ (self.net.scales.value * code)
