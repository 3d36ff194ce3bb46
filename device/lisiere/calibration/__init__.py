"""Calibration at packaging time: scores that mean what they say, and what sets of labels are made from."""
