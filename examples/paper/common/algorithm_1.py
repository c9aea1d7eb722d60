"""SGPerm as Section 5.1 uses it: Algorithm 1's schedules, and biases that are permuted, too."""

import optax

import p2t_jax as p2t


def every_weight_and_bias(path, leaf):
    """The biases of a layer are one weight vector."""
    return 0 if path[-1] == "bias" else p2t.flax_vectors(path, leaf)


def sgperm(
    seed,
    alpha_0,
    beta_1,
    alpha_min=0.005,
    lambda_0=0.05,
    lambda_max=0.1,
    beta_2=1 / 0.995,
    momentum=0.9,
):
    """Algorithm 1; the defaults are what Sections 5.1.1 and 5.1.2 share."""
    return p2t.sgperm(
        seed,
        aggressiveness=optax.exponential_decay(beta_1 * alpha_0, 1, beta_1, end_value=alpha_min),
        partition_ratio=optax.exponential_decay(beta_2 * lambda_0, 1, beta_2, end_value=lambda_max),
        inner=optax.sgd(1.0, momentum=momentum),
        vectors=every_weight_and_bias,
    )
