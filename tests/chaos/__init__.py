"""The kill harness: `make chaos`, or `python -m tests.chaos --short`."""
