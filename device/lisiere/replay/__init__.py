"""Replay: recorded input through a pipeline as it is, in virtual time and as fast as it can."""
