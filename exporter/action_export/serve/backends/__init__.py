"""Triton's backends in Python, for a tritonserver that lacks the official ones.

BACKEND/model.py is what Triton runs for models with `backend: "BACKEND"` (see installation.py).
"""
