"""The code that travels with a published model: contract, sampling, decoding, pixels, the backend.

Needs the standard library and numpy only, on Python 3.10 and later, because it is copied into the
model repository and runs in the stock Triton image. cv2 is used when it can be imported, and only
`video`, which no step of the ensemble imports, needs PyAV.
Inside this package imports are relative, so that the copy never picks up an installed version.
"""
