"""Tables of rows: dense, sparse, with holes, in blocks, over several ranks."""
