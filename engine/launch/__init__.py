"""Starts a training process or its ranks, relays their events, and checks the machine beforehand."""
