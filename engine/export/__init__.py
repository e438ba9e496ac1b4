"""Exports a finished run for other programs: as an adapter, a merged model or a GGUF file."""
