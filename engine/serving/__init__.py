"""An OpenAI-compatible endpoint: requests over HTTP, answered by the models of a run in continuous batches."""
