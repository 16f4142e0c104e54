"""The code that travels with a published model: the contract, sampling, pixels, and the backend.

Needs the standard library and numpy only, on Python 3.10 and later, because it is copied into the
model repository and runs in the stock Triton image. cv2 is used when it can be imported.
Inside this package imports are relative, so that the copy never picks up an installed version.
"""
