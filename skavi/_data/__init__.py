"""Tables of rows: dense, sparse, with missing cells, in blocks, over several ranks."""
