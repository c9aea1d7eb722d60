"""SGPerm as Section 5.1 uses it: Algorithm 1's schedules, and biases that are permuted, too."""

import optax

import p2t_jax as p2t

VECTORS = p2t.with_biases("flax")  # the biases of a layer are one weight vector


def sgperm(
    seed,
    alpha_0,
    beta_1,
    alpha_min=0.005,
    lambda_0=0.05,
    lambda_max=0.1,
    beta_2=1 / 0.995,
    momentum=0.9,
    lower="mean",
    vectors=VECTORS,
):
    """Algorithm 1; the defaults are what Sections 5.1.1 and 5.1.2 share."""
    return p2t.sgperm(
        seed,
        p2t.geometric_schedule(alpha_0, beta_1, alpha_min),
        p2t.geometric_schedule(lambda_0, beta_2, lambda_max),
        inner=optax.sgd(1.0, momentum=momentum),
        lower=lower,
        vectors=vectors,
    )
