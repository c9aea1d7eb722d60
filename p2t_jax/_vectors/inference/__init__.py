"""Weight vectors, read off the computation: a walk through the jaxpr of a network."""

from p2t_jax._vectors.inference.infer import infer_vectors

__all__ = ["infer_vectors"]
