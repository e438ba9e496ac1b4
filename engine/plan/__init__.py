"""Memory ledger, time model, tiers and planner: pure functions, never importing torch."""
