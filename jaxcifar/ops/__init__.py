"""Numerical kernels: how a layer is computed, apart from what it means."""
