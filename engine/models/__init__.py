"""Catalogue of architectures, loading and quantising, adapters, the embedded demo model."""
