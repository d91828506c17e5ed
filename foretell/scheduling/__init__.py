"""When and with whom a request runs: queue, admission, batches, cache. Pure policy around a given pool.

Nothing here does I/O, starts threads or knows what a replica is made of; time and timers are passed in.
"""
