"""NumPy and Numba kernels on the host, and how they are called."""
