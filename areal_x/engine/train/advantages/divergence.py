"""Estimates of the KL divergence to the reference model, for the reward."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from areal_x.api.algorithm_config import KL_ESTIMATORS

__all__ = ["kl_estimate"]


def kl_estimate(
    policy: npt.NDArray[np.floating], reference: npt.NDArray[np.floating], estimator: str
) -> npt.NDArray[np.float64]:
    """KL(policy || reference) at each token sampled from the policy. With d = log policy - log reference ::

        k1 = d        k2 = d^2 / 2        k3 = exp(-d) - 1 + d

    k1 and k3 have the right mean; k1 may be negative, k2 and k3 never are. John Schulman, "Approximating KL
    divergence", 2020, http://joschu.net/blog/kl-approx.html.

    Args:
        policy: log-probabilities, any shape.
        reference: those of the reference model, of the same shape.

    Raises:
        ValueError: the estimator is unknown.
    """
    difference = np.subtract(policy, reference, dtype=np.float64)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    if estimator == "k3":
        return np.expm1(-difference) + difference
    raise ValueError(f"estimator={estimator!r}: choose of {KL_ESTIMATORS}")
