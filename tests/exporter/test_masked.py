"""`scripts/masked`: the libraries that are told to compute as on an older CPU do so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

LOOK = """
import cv2, numpy, openvino, torch
from openvino import opset13
from numpy.core._multiarray_umath import __cpu_dispatch__ as chosen, __cpu_features__ as features

image = opset13.parameter([1, 3, 32, 32], openvino.Type.f32)
weights = opset13.constant(numpy.ones((16, 3, 3, 3), numpy.float32))
convolved = opset13.convolution(image, weights, [1, 1], [1, 1], [1, 1], [1, 1])
summed = opset13.softmax(opset13.reduce_mean(convolved, opset13.constant([2, 3]), False), 1)
compiled = openvino.Core().compile_model(openvino.Model([summed], [image]), "CPU")
told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
kernels = [info["primitiveType"].astype(str) for info in told if "primitiveType" in info]
print("torch", torch.backends.cpu.get_cpu_capability())
# by the groups that it has kernels for: the single bits of AVX-512 stay what the CPU says
print("numpy", [name for name in chosen if features[name] and name.startswith(("AVX2", "AVX5"))])
print("openvino", any("sse42" in kernel for kernel in kernels), [k for k in kernels if "avx" in k])
print("opencv", "AVX2?" in cv2.getCPUFeaturesLine())
"""


def test_no_library_that_can_be_told_uses_more_than_sse41() -> None:
    command = [str(ROOT / "scripts" / "masked"), sys.executable, "-c", LOOK]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == ["torch DEFAULT", "numpy []", "openvino True []", "opencv True"]
