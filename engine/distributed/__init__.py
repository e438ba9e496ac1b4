"""Collectives of several processes: the process group, ring and Ulysses attention, shards, PowerSGD."""
