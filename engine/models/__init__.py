"""Model catalogue, loading, quantisation, adapters, and the embedded demo model."""
