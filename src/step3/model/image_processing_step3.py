"""Pictures into the vision tower's input: whole pictures and crops, normalised and resized."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from step3.errors import Step3Error
from step3.model.checkpoint_json import HUB_KWARGS, read_json
from step3.model.crops import CropPlan, CropRules, plan_crops
from step3.model.pictures import Picture, PictureError, flatten_pictures, read_picture

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_SIDES = ("picture_side", "crop_side", "pad_under", "max_side", "crop_from", "window")
_LIMITS = ("max_pixels", "max_crops")
_FIELDS = (*_SIDES, *_LIMITS, "image_mean", "image_std", "do_crop")
_LARGEST_SIDE = 8192


class Step3ImageProcessor(BaseImageProcessor):
    """Cuts pictures as Step3 was trained to see them; needs no torchvision.

    Every picture gives one whole view of `picture_side`² and, if it is large or thin, crops of `crop_side`².
    The sides are not kept in proportion.

    Args:
        picture_side, crop_side: what the vision tower gets, in pixels.
        pad_under, max_side, crop_from, window: thresholds of the cutting, see `step3.model.crops.CropRules`.
        do_crop: False gives whole pictures only: fewer tokens, less detail.
        image_mean, image_std: three values each, for pixel values scaled to 0…1.
        max_pixels: a picture with more, as it comes or once padded to a square, is refused.
        max_crops: a picture that would give more is refused; 65,536 tokens of context hold 789 crops.

    Raises:
        Step3Error: a value that cannot work.
    """

    model_input_names = ["pixel_values", "patch_pixel_values", "num_patches", "patch_newline_mask"]  # noqa: RUF012

    def __init__(
        self,
        picture_side: int = 728,
        crop_side: int = 504,
        pad_under: int = CropRules.pad_under,
        max_side: int = CropRules.max_side,
        crop_from: int = CropRules.crop_from,
        window: int = CropRules.window,
        do_crop: bool = True,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        max_pixels: int = 89_000_000,
        max_crops: int = 768,
        **kwargs: Any,
    ) -> None:
        # Other fields of a file are dropped: Transformers would set them as attributes, over methods too.
        super().__init__(processor_class=kwargs.get("processor_class"))
        self.picture_side = picture_side
        self.crop_side = crop_side
        self.pad_under = pad_under
        self.max_side = max_side
        self.crop_from = crop_from
        self.window = window
        self.do_crop = do_crop
        self.image_mean: Sequence[float] = image_mean
        self.image_std: Sequence[float] = image_std
        self.max_pixels = max_pixels
        self.max_crops = max_crops
        self._check()
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def _check(self) -> None:
        for field in (*_SIDES, *_LIMITS):
            value, largest = getattr(self, field), _LARGEST_SIDE if field in _SIDES else None
            if type(value) is not int or value < 1 or (largest and value > largest):
                within = f"from 1 to {largest}" if largest else "over 0"
                raise Step3Error(f"image processor: {field} must be a whole number {within}, found {value!r}")
        for field in ("image_mean", "image_std"):
            values = getattr(self, field)
            if (
                not isinstance(values, list | tuple)
                or len(values) != 3
                or not all(isinstance(value, int | float) for value in values)
            ):
                raise Step3Error(f"image processor: {field} must hold three numbers, found {values!r}")
        if min(self.image_std) <= 0:
            raise Step3Error(f"image processor: image_std must be over 0, found {self.image_std!r}")
        if not isinstance(self.do_crop, bool):
            raise Step3Error(f"image processor: do_crop must be true or false, found {self.do_crop!r}")

    def preprocess(
        self,
        images: Picture | Sequence[Any],
        do_crop: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Turns pictures into the vision tower's input.

        Args:
            images: one picture (see `step3.model.pictures.read_picture` for what it may be), a list of them,
                or a list of lists; nested lists are taken in order.
            do_crop: instead of the processor's own.
            return_tensors: "np" for numpy; torch tensors otherwise.

        Returns:
            pixel_values: float32 [pictures, 3, picture_side, picture_side].
            patch_pixel_values: float32 [crops, 3, crop_side, crop_side], the pictures' crops one after the
                other, each row by row.
            num_patches: int64 [pictures], crops of each picture.
            patch_newline_mask: bool [crops], whether a crop ends a row that is not its picture's last.

        Raises:
            PictureError: a picture cannot be read, or is larger than the processor allows.
        """
        pictures = [read_picture(source, self.max_pixels) for source in flatten_pictures(images)]
        if not pictures:
            raise PictureError("there is no picture to process: give at least one")
        plans = [self.plan(*picture.size, do_crop=do_crop) for picture in pictures]
        num_crops = [plan.num_crops for plan in plans]
        wholes = _empty(len(plans), 3, self.picture_side, self.picture_side)
        crops = _empty(sum(num_crops), 3, self.crop_side, self.crop_side)
        for picture, plan, whole, own_crops in zip(
            pictures, plans, wholes.split(1), crops.split(num_crops), strict=True
        ):
            picture = _lay_out(picture, plan)
            self._normalise(_pixels(picture)[None], out=whole)
            if plan.num_crops:
                self._normalise(_cut(picture, plan), out=own_crops)
        newline_mask = [ends_row for plan in plans for ends_row in plan.newline_mask]
        features = {
            "pixel_values": wholes,
            "patch_pixel_values": crops,
            "num_patches": torch.from_numpy(np.array(num_crops, np.int64)),
            "patch_newline_mask": torch.from_numpy(np.array(newline_mask, np.bool_)),
        }
        return BatchFeature(features, tensor_type=return_tensors)

    def plan(self, width: int, height: int, do_crop: bool | None = None) -> CropPlan:
        """How a picture of this size is padded, scaled and cut.

        Raises:
            PictureError: it would be padded to more than `max_pixels`, or give more than `max_crops`.
        """
        rules = CropRules(self.pad_under, self.max_side, self.crop_from, self.window)
        plan = plan_crops(width, height, rules, crop=self.do_crop if do_crop is None else do_crop)
        side = max(plan.padded_size)
        if plan.padded_size != (width, height) and side * side > self.max_pixels:
            raise PictureError(
                f"a picture of {width} × {height} would be padded to {side} × {side}, more than the "
                f"{self.max_pixels:,} pixels that max_pixels allows; cut it into shorter pieces"
            )
        if plan.num_crops > self.max_crops:
            raise PictureError(
                f"a picture of {width} × {height} would be cut into {plan.num_crops} crops, more than the "
                f"{self.max_crops} that max_crops allows; cut it into shorter pieces"
            )
        return plan

    def _normalise(self, pixels: torch.Tensor, out: torch.Tensor) -> None:
        """uint8 [n, height, width, 3] → normalised, then resized, float32 `out` [n, 3, side, side]."""
        planes = pixels.permute(0, 3, 1, 2)
        fits = planes.shape == out.shape
        values = out if fits else _empty(*planes.shape)
        values.copy_(planes).div_(255)
        for channel, (mean, std) in enumerate(zip(self.image_mean, self.image_std, strict=True)):
            values[:, channel].sub_(mean).div_(std)
        if not fits:
            side = out.shape[-2:]
            out.copy_(F.interpolate(values, side, mode="bilinear", align_corners=False, antialias=True))

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of a checkpoint, from whichever file has them.

        `processor_config.json` (as Transformers 5 writes it), else `preprocessor_config.json`, else the
        published values with `vision_config.image_size` and `enable_patch` of `config.json`.
        """
        hub = {key: kwargs.pop(key) for key in HUB_KWARGS if key in kwargs}
        for key in ("_from_auto", "_from_pipeline", "trust_remote_code", "use_fast"):
            kwargs.pop(key, None)
        both = read_json(pretrained_model_name_or_path, "processor_config.json", **hub)
        own = both.get("image_processor") or read_json(
            pretrained_model_name_or_path, "preprocessor_config.json", **hub
        )
        if own:
            return dict(own), kwargs
        vision = read_json(pretrained_model_name_or_path, "config.json", **hub).get("vision_config")
        if not isinstance(vision, Mapping):
            return {}, kwargs
        renamed = {"image_size": "picture_side", "enable_patch": "do_crop"}
        return {field: vision[name] for name, field in renamed.items() if name in vision}, kwargs

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        given = {field: kwargs.pop(field) for field in _FIELDS if field in kwargs}
        return super().from_dict({**image_processor_dict, **given}, **kwargs)


def _lay_out(picture: Image.Image, plan: CropPlan) -> Image.Image:
    if plan.padded_size != picture.size:
        canvas = Image.new("RGB", plan.padded_size)
        canvas.paste(picture)
        picture = canvas
    return _resized(picture, plan.size)


def _cut(picture: Image.Image, plan: CropPlan) -> torch.Tensor:
    """The crops, uint8 [crops, window, window, 3]; black where a window is larger than the picture."""
    pixels = _pixels(_resized(picture, plan.crop_size))
    crops = torch.from_numpy(np.zeros((plan.num_crops, plan.window, plan.window, 3), np.uint8))
    for crop, (x, y) in zip(crops, plan.corners, strict=True):
        part = pixels[y : y + plan.window, x : x + plan.window]
        crop[: part.shape[0], : part.shape[1]] = part
    return crops


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)


def _pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture))


def _empty(*shape: int) -> torch.Tensor:
    """float32 on the CPU, whatever torch's default type and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
