"""Image bytes → pixels: decode, centre crop, resize, normalise, lay out. Knows files as bytes, no model."""

import io
import warnings

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from foretell.core.errors import InvalidInput, PackageError
from foretell.core.tensor import DTYPES, Tensor, Tensors
from foretell.runtimes.step import Context
from foretell.store.manifest import ImageStep

MAX_PIXELS = 64_000_000
"""Images with more pixels than this are refused before they are decoded: a small file can claim a huge one."""

_RESAMPLE = {
    "nearest": Pillow.Resampling.NEAREST,
    "bilinear": Pillow.Resampling.BILINEAR,
    "bicubic": Pillow.Resampling.BICUBIC,
    "lanczos": Pillow.Resampling.LANCZOS,
}


class Image:
    """Decodes `input` [n] BYTES into `output` [n, 3, h, w] or [n, h, w, 3] in the model's datatype."""

    def __init__(self, step: ImageStep, dtype: np.dtype) -> None:
        self.reads = (step.input,)
        self.makes = (step.output,)
        self._step = step
        self._dtype = dtype
        self._scale = 1.0 / np.asarray(step.std, np.float32)
        self._shift = -np.asarray(step.mean, np.float32) * self._scale
        self._plain = bool((self._scale == 1).all() and (self._shift == 0).all())

    def __call__(self, tensors: Tensors, given: Tensors) -> Tensors:
        step = self._step
        files = tensors[step.input].reshape(-1)
        pixels = np.empty((len(files), step.height, step.width, 3), np.uint8)
        for row, data in enumerate(files):
            try:
                pixels[row] = load_pixels(data, step)
            except Exception as error:  # Pillow's decoders raise all kinds: OSError, SyntaxError, ValueError, …
                raise InvalidInput(
                    f'input "{step.input}", row {row}: not an image that can be read ({_reason(error)}). Send the'
                    " bytes of a whole PNG, JPEG, WebP, GIF, BMP or TIFF file"
                ) from None
        return {step.output: self._finish(pixels)}

    def _finish(self, pixels: Tensor) -> Tensor:
        """[n, h, w, 3] uint8 → normalised, in the model's dtype and layout, in as few passes as it takes."""
        planes = pixels.transpose(0, 3, 1, 2) if self._step.layout == "nchw" else pixels
        if self._plain:
            return planes.astype(self._dtype, order="C")
        per_channel = (3, 1, 1) if self._step.layout == "nchw" else (3,)
        scaled = np.empty(planes.shape, np.float32)
        np.multiply(planes, self._scale.reshape(per_channel), out=scaled)
        scaled += self._shift.reshape(per_channel)
        return scaled.astype(self._dtype, copy=False)


def load_pixels(data: bytes, step: ImageStep) -> Tensor:
    """One encoded image as [height, width, 3] uint8 RGB: the centre of the picture, as `step` crops it.

    The crop has the aspect ratio of the target and keeps `step.crop` of the largest such box; only its pixels
    are resampled, so the crop costs nothing. Orientation tags of cameras are obeyed, transparency is dropped.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata; what matters raises
        file = Pillow.open(io.BytesIO(data))
        width, height = file.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} × {height} pixels, the limit is {MAX_PIXELS:,}")
        image = ImageOps.exif_transpose(file).convert("RGB")
    width, height = image.size
    scale = min(width / step.width, height / step.height) * step.crop
    across, down = step.width * scale, step.height * scale
    left, top = (width - across) / 2, (height - down) / 2
    box = (left, top, left + across, top + down)
    return np.asarray(image.resize((step.width, step.height), _RESAMPLE[step.resample], box))


def _reason(error: Exception) -> str:
    text = str(error)
    return "unknown format" if "cannot identify image file" in text else text or type(error).__name__


def make_step(step: ImageStep, context: Context) -> Image:
    """Raises `PackageError` if the model has no such input or it has another shape."""
    spec = next((s for s in context.model.inputs if s.name == step.output), None)
    if spec is None:
        names = ", ".join(str(s) for s in context.model.inputs)
        raise PackageError(f'the image step makes "{step.output}"; the model takes {names}')
    size = (3, step.height, step.width) if step.layout == "nchw" else (step.height, step.width, 3)
    if len(spec.shape) != 4 or any(w not in (-1, g) for w, g in zip(spec.shape[1:], size, strict=True)):
        raise PackageError(
            f"the image step makes [-1, {', '.join(map(str, size))}] ({step.layout}), the model takes {spec}"
        )
    if not 0 < step.crop <= 1 or 0 in step.std:
        raise PackageError(f"the image step has crop {step.crop} (expected 0 < crop ≤ 1) or a std of 0: {step.std}")
    return Image(step, DTYPES[spec.datatype])
