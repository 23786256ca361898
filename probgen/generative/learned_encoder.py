"""Codes: learned distributions of which every datum has one, and which make a datum of a code."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.family import Spec
from probgen.generative.learned import Learned

__all__ = ["LearnedEncoder"]


class LearnedEncoder(Learned):
    """A learned distribution with codes. Subclasses give, for one datum, ``code``, ``encode_at`` and ``decode_at``.

    A decoder may need standard normal noise, of shape ``decoder_noise``; for a deterministic one that is ``(0,)``.
    """

    @property
    @abc.abstractmethod
    def code(self) -> Spec:
        """Shape of one code, and its number of values if it is discrete."""

    @property
    def decoder_noise(self) -> tuple[int, ...]:
        """Shape of the noise that ``decode_at`` takes."""
        return (0,)

    @abc.abstractmethod
    def encode_at(self, x: Array) -> Array:
        """The code of one datum."""

    @abc.abstractmethod
    def decode_at(self, code: Array, noise: Array) -> Array:
        """The datum of one code and the noise of the decoder."""

    def encode(self, x: Array) -> Array:
        """Codes, shape ``(..., *code.shape)``, of data, shape ``(..., *event_shape)``."""
        return self.pointwise(lambda here, x: here.encode_at(x), (jnp.asarray(x), self.event_dim))

    def decode(self, code: Array, key: PRNGKey | None = None) -> Array:
        """Data of codes.

        Args:
            code: Codes, shape ``(..., *code.shape)``.
            key: Randomness of the decoder; not needed by a deterministic one.

        Raises:
            MethodError: If the decoder is random and got no key.
        """
        code = jnp.asarray(code)
        ndim = len(self.code.shape)
        batch = jnp.broadcast_shapes(self.batch_shape, code.shape[: code.ndim - ndim])
        shape = (*batch, *self.decoder_noise)
        if key is None:
            if self.decoder_noise != (0,):
                raise MethodError(f"the decoder of this {self._kind} is random. Give decode(code, key) a key.")
            noise = jnp.zeros(shape)
        else:
            noise = jax.random.normal(key, shape)
        parts = (code, ndim), (noise, len(self.decoder_noise))
        return self.pointwise(lambda here, c, z: here.decode_at(c, z), *parts)


def check_encoder(name: str, encoder: object) -> None:
    """Refuse what has no codes, or waits for a condition.

    Raises:
        MethodError: If so.
    """
    if not isinstance(encoder, LearnedEncoder):
        raise MethodError(
            f"{name} is a {type(encoder).__name__}, expected a fitted model with codes. Fit an Autoencoder first."
        )
    if encoder.spec.condition is not None:
        raise MethodError(f"{name} was fitted with a condition. Fit one without.")
