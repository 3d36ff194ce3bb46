"""Kernels: how the loops of each are ordered, so that a CPU runs them fast. Nothing here changes what they compute."""
