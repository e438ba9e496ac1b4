"""Optimisers, schedules and gradient transforms, one small file a technique."""
