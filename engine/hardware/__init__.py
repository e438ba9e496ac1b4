"""Hardware inventory, live telemetry, and the catalogue of known GPUs."""
