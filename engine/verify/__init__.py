"""Proofs: a small check per optimisation, on this machine, of an observable difference between on and off."""
