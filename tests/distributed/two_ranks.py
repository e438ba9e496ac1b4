"""What two ranks compute for several tests, which share their start. Imported by each process."""

from __future__ import annotations

from tests.distributed.labels import label_errors
from tests.distributed.parity import refusal_of_heads, sequence_errors
from tests.distributed.weights import weight_errors


def errors(rank, size):
    """The relative errors of each kind of sequence."""
    return {
        "sequence": sequence_errors(rank, size),
        "labels": label_errors(rank, size),
        "weights": weight_errors(rank, size),
        "heads": refusal_of_heads(rank, size),
    }
