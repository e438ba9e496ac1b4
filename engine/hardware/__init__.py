"""What is here and what it can do: inventory, live telemetry, catalogue of known cards."""
