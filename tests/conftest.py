"""What holds for every test."""

import signal

# A shell starts a job with & so that it ignores SIGINT, and every process that a test starts would
# inherit that; with a handler here they start with the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)
