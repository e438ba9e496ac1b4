"""Optimisers and schedules, one small file a technique."""
