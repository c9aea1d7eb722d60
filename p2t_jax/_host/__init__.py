"""NumPy and Numba kernels on the host, and the door to them."""
