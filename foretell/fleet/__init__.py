"""Replicas: child processes that hold one loaded predictor each, and the pool that keeps them alive."""
