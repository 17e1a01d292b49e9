"""Predictions and labels -> metrics with confidence intervals, calibration, tests of a difference."""
