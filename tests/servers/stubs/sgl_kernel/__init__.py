"""Stands in for SGLang's kernels, which the package index has for CUDA alone; see stand_in."""

from stand_in import Absent, absent, stand_in


def __getattr__(name: str) -> Absent:
    return absent(__name__, name)


stand_in(__name__)
