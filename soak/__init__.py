"""The soak: callers who know the right answers, beside damaged files, malformed requests and kills.

`scripts/soak` runs it. No part of the package.
"""
