"""The mark of classes that a file may name: a saved model is described by the names of its settings' classes."""

import equinox as eqx

__all__ = ["Part"]


class Part(eqx.Module):
    """A family of models, or something that one is made of: data all through, so that a file can hold it.

    A kind of setting says that it can be saved by having this as its base class. Reading a file makes objects of
    subclasses of ``Part`` that have been imported and of nothing else; what they get are numbers, strings, arrays and
    other parts, and the class's own checks judge them.
    """
