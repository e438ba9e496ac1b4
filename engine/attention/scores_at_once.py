"""Size of the tensors that attention without a kernel writes its scores into; a plan counts them."""

SCORES_AT_ONCE = 1 << 24
"""Most scores in one tensor (engine.attention.softcapped)."""
