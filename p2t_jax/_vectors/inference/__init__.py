"""Weight vectors, read off the computation: a walk through the jaxpr of a network."""
