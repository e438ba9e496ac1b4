"""Sessions of coding agents, read from the files that these keep, as conversations to train on."""
