"""LAPerm on devices that look ahead alone, simulated one by one in NumPy."""

import numpy as np

from oracles import laperm


def local_laperm(theta_0, axes, opt, gradients, k, m=0.0):
    """Yields, after every mini-batch, each device's parameters and what all agreed on, or None.

    `theta_0` is a list of arrays, `axes` has None for those that are no weight vectors;
    `gradients` yields an array (devices, ...) for each. The means must be exact in float64. m is
    the fraction of what is cut off that all devices remember.
    """
    errors, m = [np.zeros_like(w) for w in theta_0], np.float32(m)
    theta_sorted = [
        w if a is None else laperm.sort_weight_vectors(w, a)
        for w, a in zip(theta_0, axes, strict=True)
    ]
    devices = None
    for i, gradient in enumerate(gradients, start=1):
        if devices is None:
            devices = [np.stack([w] * len(g)) for w, g in zip(theta_0, gradient, strict=True)]
        updates, agreed = [opt(g) for g in gradient], None
        if i % k == 0:
            agreed = []
            for j, (p, update) in enumerate(zip(devices, updates, strict=True)):
                phi = (p + update).astype(np.float64).mean(axis=0).astype(p.dtype)
                if axes[j] is not None:
                    phi, errors[j] = laperm.synchronize_with_feedback(
                        theta_sorted[j], phi, errors[j], m, axes[j]
                    )
                agreed.append(phi)
                updates[j] = phi - p  # Optax adds updates: both operations round
        devices = [p + update for p, update in zip(devices, updates, strict=True)]
        yield devices, agreed
