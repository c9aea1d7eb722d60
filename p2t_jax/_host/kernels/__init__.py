"""What runs on the host: NumPy and Numba, no JAX."""
