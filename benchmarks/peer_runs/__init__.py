"""skavi's rivals on the paper's models, one file each, for `benchmarks/peers.py`.

Every runner maps a `Task` to a `Run`: it states the model in its own library's words, starts at
zero means, climbs until the time is up and takes snapshots of its factors on the way, the clock
stopped. Runners import only what they run on, so that peak memory is theirs. What the snapshots are
worth is measured afterwards, by one evaluator for all (`evaluation.py`).
"""
