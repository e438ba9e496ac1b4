"""From a repository to windows of tokens in a memory-mapped store."""
