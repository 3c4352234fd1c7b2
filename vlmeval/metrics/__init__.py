"""Metrics as plain functions and as ``evaluate.Metric`` modules."""
