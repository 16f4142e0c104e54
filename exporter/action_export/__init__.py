"""Exports mmaction2 recognizers to a Triton model repository, and proves that they are equal."""

__version__ = "0.1.0"
