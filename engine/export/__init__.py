"""From a finished run to files that other programs load: an adapter, a merged model, a GGUF file."""
