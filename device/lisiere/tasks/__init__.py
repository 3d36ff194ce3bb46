"""Tasks: from a frame or window to tensors, and from tensors to a result."""
