"""Proofs: for every optimisation a small check, run on this machine, of an observable difference between on and off."""
