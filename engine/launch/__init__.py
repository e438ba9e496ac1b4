"""Processes: starts a training process or its ranks, relays their events, checks the machine before."""
