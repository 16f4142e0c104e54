"""model.py of the preprocess step: all sampled frames in, normalised float32 crops out."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

try:
    import cv2
except ImportError:
    cv2 = None


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"], args["model_version"])
        self.settings = json.loads((folder / "settings.json").read_text())
        self.mean = np.array(self.settings["mean"], np.float32)
        self.std = np.array(self.settings["std"], np.float32)

    def execute(self, requests):
        responses = []
        for request in requests:
            frames = pb_utils.get_input_tensor_by_name(request, "frames").as_numpy()
            clips = self.transform(frames)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("clips", clips)]))
        return responses

    def transform(self, frames):
        """[positions, H, W, 3] to [1, views, C, T, h, w], or [1, views, C, h, w] of a 2D model."""
        resized = [self.resize(frame) for frame in frames]
        crops = [crop for cut in self.crops(*resized[0].shape[:2]) for crop in map(cut, resized)]
        batch = (np.stack(crops).astype(np.float32) - self.mean) / self.std
        if self.settings["layout"] == "NCHW":
            return np.ascontiguousarray(batch.transpose(0, 3, 1, 2)[None])
        views = batch.reshape(-1, self.settings["clip_len"], *batch.shape[1:])
        return np.ascontiguousarray(views.transpose(0, 4, 1, 2, 3)[None])

    def resize(self, frame):
        height, width = frame.shape[:2]
        scale = self.settings["short"] / min(height, width)
        size = int(width * scale + 0.5), int(height * scale + 0.5)
        if size == (width, height):
            return frame
        if cv2 is not None:
            return cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
        from PIL import Image

        return np.asarray(Image.fromarray(frame).resize(size, Image.BILINEAR))

    def crops(self, height, width):
        """A function for each crop, in mmaction2's order."""
        size = self.settings["crop_size"]
        down, right = height - size, width - size

        def cut(top, left, flipped=False):
            def crop(frame):
                window = frame[top : top + size, left : left + size]
                return window[:, ::-1] if flipped else window

            return crop

        if self.settings["crop"] == "center":
            return [cut(down // 2, right // 2)]
        if self.settings["crop"] == "three":
            y, x = down // 2, right // 2
            return [cut(0, 0), cut(2 * y, 2 * x), cut(y, x)]
        y, x = down // 4, right // 4
        corners = [(0, 0), (0, 4 * x), (4 * y, 0), (4 * y, 4 * x), (2 * y, 2 * x)]
        return [cut(top, left, flip) for top, left in corners for flip in (False, True)]
