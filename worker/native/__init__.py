"""The worker's own kernels for a CPU: C++ compiled with the package, and how Python reaches it."""
