"""Logarithm and logistic function by the bits of a float32, straight lines between powers of two.

Off by at most 6 % of a factor, monotone, and the same to the last bit wherever float32 is IEEE 754; the
learned weights do not mind the bends, and a vector unit does either in a few instructions.
"""

from __future__ import annotations

import numpy as np

from uvmsim.policies.lists import inner

LOG_SCALE = np.float32(np.log(2) / (1 << 23))
LOG_BIAS = np.float32(127 * np.log(2))
EXP_SCALE = np.float32((1 << 23) / np.log(2))
EXP_BIAS = np.float32(127 * (1 << 23))
LIMIT = np.float32(20)
ONE, ZERO = np.float32(1), np.float32(0)


@inner
def log_of(x):
    """About log(x), of a float32 above 0."""
    return np.float32(np.float32(x).view(np.int32)) * LOG_SCALE - LOG_BIAS


@inner
def chance_of(u):
    """About 1 / (1 + exp(-u)), of a float32."""
    y = min(max(-u, -LIMIT), LIMIT)
    return ONE / (ONE + np.int32(y * EXP_SCALE + EXP_BIAS).view(np.float32))
