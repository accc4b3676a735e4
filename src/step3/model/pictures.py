"""Reads a picture, whatever it comes as, into upright 8-bit RGB.

Transparent places become white, as in the public engines that run Step3. Nothing that comes from outside
is trusted: sizes are checked before anything is decoded, only still-picture formats that decode within
this process are opened, and downloads are bounded.
"""

import base64
import binascii
import http.client
import io
import os
import urllib.request
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from step3.errors import Step3Error

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | torch.Tensor

# Formats that PIL decodes by itself; EPS and the like may start other programs.
FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PNG",
    "PPM",
    "QOI",
    "TGA",
    "TIFF",
    "WEBP",
)
MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_SECONDS = 30.0

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class PictureError(Step3Error):
    """A picture that cannot be read, or is too large to be."""


def read_picture(source: Picture, max_pixels: int) -> Image.Image:
    """Reads one picture as upright 8-bit RGB.

    Args:
        source: a PIL image; a path; an http(s) or data URL; a file's bytes; or an array or tensor.
            An array is [height, width] or has 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGBA) channels, last
            in an array and first in a tensor unless only the other place fits. 8-bit values are taken as
            they are; uint16 and 16-bit pictures are scaled from 0…65535; wider integers are 8-bit values, or
            16-bit values if any is over 255; floats are 0…1, or 0…255 if any is over 1.
        max_pixels: the largest width × height that is decoded.

    Raises:
        PictureError: it cannot be read, has no pixels or more than `max_pixels`.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, max_pixels, "the picture")
    if isinstance(source, np.ndarray | torch.Tensor):
        return _to_rgb(_from_array(source, max_pixels), max_pixels, "the picture")
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), max_pixels, "the picture")
    if isinstance(source, str | os.PathLike):
        return _read_named(os.fspath(source), max_pixels)
    raise PictureError(
        "a picture must be a PIL image, a path, an http(s) or data URL, bytes, an array or a tensor, "
        f"found {type(source).__name__}"
    )


def flatten_pictures(images: Any) -> list[Picture]:
    """Pictures out of one picture, a list, a list of lists, or an array of four dimensions, in order."""
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    if isinstance(images, list | tuple):
        return [picture for part in images for picture in flatten_pictures(part)]
    return [images]


def decode_base64(text: str) -> bytes:
    """The bytes of a picture given as base64, with or without `data:image/...;base64,` before it."""
    if not isinstance(text, str):
        raise PictureError(f"a picture's base64 must be text, found {type(text).__name__}")
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise PictureError("a data URL must look like data:image/png;base64,...")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise PictureError("the picture's base64 text is not valid base64") from None


def _read_named(name: str, max_pixels: int) -> Image.Image:
    if name.startswith(("http://", "https://")):
        return _decode(io.BytesIO(_download(name)), max_pixels, name)
    if name.startswith("data:"):
        return _decode(io.BytesIO(decode_base64(name)), max_pixels, "the picture in the data URL")
    short = name if len(name) <= 200 else name[:200] + "…"
    try:
        file = open(name, "rb")  # noqa: SIM115 (what decoding raises is not for this handler)
    except (OSError, ValueError) as error:
        raise PictureError(f"cannot read the picture {short}: {getattr(error, 'strerror', error)}") from None
    with file:
        return _decode(file, max_pixels, short)


def _download(url: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "step3"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_SECONDS) as response:
            data = response.read(MAX_DOWNLOAD_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise PictureError(f"cannot download the picture {url}: {error}") from None
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise PictureError(f"the picture {url} is over {MAX_DOWNLOAD_BYTES // 2**20} MiB")
    return data


def _decode(file: Any, max_pixels: int, name: str) -> Image.Image:
    Image.init()
    formats = [format for format in FORMATS if format in Image.OPEN]
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large to be opened; scale it down ({error})") from None
    except Image.UnidentifiedImageError:
        raise PictureError(f"{name} is not a picture in a known format ({', '.join(formats)})") from None
    except Exception as error:  # PIL answers a malformed file with errors of any kind
        raise PictureError(f"cannot open {name}: {error}") from None
    with image:
        return _to_rgb(image, max_pixels, name)


def _check_size(width: int, height: int, max_pixels: int, name: str) -> None:
    if width < 1 or height < 1:
        raise PictureError(f"{name} is {width} × {height}: it has no pixels")
    if width * height > max_pixels:
        raise PictureError(
            f"{name} is {width} × {height} = {width * height:,} pixels, more than the {max_pixels:,} that "
            "max_pixels allows; scale it down or raise max_pixels"
        )


def _to_rgb(image: Image.Image, max_pixels: int, name: str) -> Image.Image:
    _check_size(image.width, image.height, max_pixels, name)
    try:
        image.load()
    except Exception as error:  # PIL answers a malformed file with errors of any kind
        raise PictureError(f"cannot decode {name}: {error}") from None
    image = _upright(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_uint8(np.asarray(image), sixteen_bit="16" in image.mode)).convert("RGB")
    try:
        if not image.has_transparency_data:
            return image.convert("RGB")
        image = image.convert("RGBA")
    except ValueError:
        raise PictureError(
            f"{name} has mode {image.mode}, which cannot be turned into RGB; save it as RGB"
        ) from None
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # a broken EXIF block says nothing about where up is
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _from_array(array: np.ndarray | torch.Tensor, max_pixels: int) -> Image.Image:
    channels_first = isinstance(array, torch.Tensor)
    shape = tuple(array.shape)
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3:
        first, last = shape[0] in _MODES, shape[2] in _MODES
        if not first and not last:
            raise PictureError(
                f"an array of a picture must have 1 to 4 channels first or last, found shape {shape}"
            )
        if first and (channels_first or not last):
            array = array.permute(1, 2, 0) if isinstance(array, torch.Tensor) else array.transpose(1, 2, 0)
    else:
        raise PictureError(f"an array of a picture must have 2 or 3 dimensions, found shape {shape}")
    height, width, channels = array.shape
    _check_size(width, height, max_pixels, "the picture")
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    pixels = _to_uint8(array, sixteen_bit=array.dtype == np.uint16)
    if channels == 1:
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    return Image.frombuffer(_MODES[channels], (width, height), np.ascontiguousarray(pixels).tobytes())


def _to_uint8(values: np.ndarray, sixteen_bit: bool) -> np.ndarray:
    """Any numbers of a picture as 0…255; what stands for what is in `read_picture`."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "iuf":
        raise PictureError(f"a picture's values must be numbers, found {values.dtype}")
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 255):
            raise PictureError(f"a float picture's values must lie in 0…1 or 0…255, found {low:g} … {high:g}")
        scale = 255.0 if high <= 1 else 1.0
    else:
        if not (low >= 0 and high <= 65535):
            raise PictureError(f"a picture's values must lie in 0…255 or 0…65535, found {low} … {high}")
        scale = 1 / 257 if sixteen_bit or high > 255 else 1.0
    return np.rint(values.astype(np.float32) * np.float32(scale)).astype(np.uint8)
