"""Measures a server that serves a published model: `action-bench`.

`load` keeps a number of requests in flight and derives throughput and latencies from them,
`server_stats` reads where the server spent the time, `requests` makes the requests, `report` writes
what came of it, `perf_analyzer` has NVIDIA's tool measure instead.
"""
