"""Implementations of the step that computes an update's gradient: whole, streamed, over ranks, ZeRO, OOM fallback."""
