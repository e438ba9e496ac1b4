"""Flash attention backends behind one interface, and the merge of blocks."""
