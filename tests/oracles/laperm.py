"""Algorithm 2 of the paper, transcribed literally: slow and obvious."""

import numpy as np


def ranking(w):
    """R' of Section 3.1: distinct integers from 0, w[p] > w[q] iff R'[p] > R'[q].

    The paper's weights are distinct and finite. Equal ones are ranked by position here, and NaN
    after all others.
    """

    def larger(p, q):
        a, b = float(w[p]), float(w[q])
        if a != a or b != b:
            return (a != a, p) > (b != b, q)
        return (a, p) > (b, q)

    n = len(w)
    return np.array([sum(larger(p, q) for q in range(n)) for p in range(n)], dtype=int)


def weight_vectors(w, axes):
    """Yields the index of each weight vector: every axis in `axes` runs, all others are fixed."""
    fixed = [1 if axis in axes else size for axis, size in enumerate(w.shape)]
    for index in np.ndindex(*fixed):
        yield tuple(slice(None) if a in axes else i for a, i in enumerate(index))


def sort_weight_vectors(theta_0, axes):
    theta_sorted = theta_0.copy()
    for j in weight_vectors(theta_0, axes):
        w = theta_0[j].ravel()
        R = ranking(w)
        out = w.copy()
        for p in range(len(w)):
            out[R[p]] = w[p]
        theta_sorted[j] = out.reshape(theta_0[j].shape)
    return theta_sorted


def synchronize(theta_sorted, phi_k, axes):
    theta = theta_sorted.copy()
    for j in weight_vectors(phi_k, axes):
        R = ranking(phi_k[j].ravel())
        theta[j] = theta_sorted[j].ravel()[R].reshape(phi_k[j].shape)
    return theta


def synchronize_with_feedback(theta_sorted, phi_k, e, m, axes):
    """Not in the paper: what is cut off is remembered, unless it is not finite."""
    z = phi_k + e
    theta = synchronize(theta_sorted, z, axes)
    return theta, np.where(np.isfinite(m * (z - theta)), m * (z - theta), 0)


def laperm(theta_0, axes, opt, gradients, k):
    """Yields one weight matrix after every mini-batch; `opt(gradient)` is Opt(f, phi, d)."""
    theta_sorted = sort_weight_vectors(theta_0, axes)
    theta = theta_0
    batches = iter(gradients)
    while True:
        phi = theta
        for i in range(1, k + 1):
            gradient = next(batches, None)
            if gradient is None:
                return
            phi = phi + opt(gradient)
            if i < k:
                yield phi
        theta = synchronize(theta_sorted, phi, axes)
        yield theta
