"""What runs on the host: NumPy and Numba, no JAX."""

# Numbers that are compared at once, and vectors that are copied together: 16 weights of 4 bytes
# fill a cache line.
LANES = 16
