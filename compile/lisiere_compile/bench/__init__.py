"""`lisiere bench`: compiled models against the runtimes people would pick instead, side by side in one run."""
