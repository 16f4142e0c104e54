"""Sends sampled frames of a video to a model that action-export published, over gRPC."""
