"""What holds for every test."""

import signal

from action_export.dependencies import turn_telemetry_off
from hypothesis import HealthCheck, settings

# A shell starts a job with & so that it ignores SIGINT, and every process that a test starts would
# inherit that; with a handler here they start with the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests import onnxruntime and openvino themselves, and nothing is sent from here.
turn_telemetry_off()

# How fast examples are made and run says something of the machine only.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
