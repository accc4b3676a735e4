"""Pictures with known content: a few coloured shapes on a coarse grid, or one printed number.

A `Scene` says everything about its picture in fractions of the picture's sides, so the same scene
can be drawn at its own size or straight at the small size that the vision tower sees.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (214, 34, 40),
    "green": (40, 158, 60),
    "blue": (38, 82, 222),
    "yellow": (246, 218, 40),
    "orange": (246, 132, 22),
    "purple": (128, 44, 172),
    "pink": (246, 140, 192),
    "black": (16, 16, 18),
    "white": (250, 250, 250),
}
DIGITS = tuple("0123456789")
SIZES = ("small", "large")
PLACES = (
    "top left", "top", "top right",
    "left", "middle", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
COLUMNS = ("left", "middle", "right")
ROWS = ("top", "middle", "bottom")
GRID = 3

RGB = tuple[int, int, int]

_RADIUS = {"small": (0.095, 0.112), "large": (0.145, 0.158)}  # of the shorter side, in a grid of things
_LONE_RADIUS = {"small": (0.095, 0.118), "large": (0.145, 0.36)}  # of a thing that has the picture to itself
_CONTRAST = 120.0  # least Euclidean RGB distance between ink and ground
_GLYPH = 144  # font size, in pixels, of the digits' masters


@dataclass(frozen=True)
class Thing:
    """One coloured shape. `x`, `y` are fractions of width and height, `radius` of the shorter side.

    In a crowd (see `draw_crowd`) the shape may be a digit.
    """

    shape: str
    colour: str
    size: str
    cell: int
    x: float
    y: float
    radius: float
    angle: float
    rgb: RGB

    @property
    def place(self) -> str:
        """Where it is, in words: one of `PLACES`."""
        return PLACES[self.cell]

    @property
    def column(self) -> str:
        return COLUMNS[self.cell % GRID]

    @property
    def row(self) -> str:
        return ROWS[self.cell // GRID]


@dataclass(frozen=True)
class Number:
    """A printed number. `x`, `y` (centre) and `width` are fractions of the picture, `angle` in degrees."""

    text: str
    colour: str
    x: float
    y: float
    width: float
    stretch: float
    weight: int
    angle: float
    rgb: RGB


@dataclass(frozen=True)
class Ground:
    """What lies behind. `kind` is plain, gradient (from `rgb` to `rgb_end` along `angle`) or noisy."""

    kind: str
    rgb: RGB
    rgb_end: RGB
    angle: float = 0.0
    noise: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Scene:
    """A picture's whole content. Either `things` (in reading order) or `number` is there, never both."""

    width: int
    height: int
    ground: Ground
    things: tuple[Thing, ...] = ()
    number: Number | None = None


@dataclass(frozen=True)
class Difficulty:
    """What pictures may hold.

    `sides` bounds the longer side of most pictures, in pixels; `crop_share` of them are larger (728 to
    1500), so that the processor cuts crops. `number_share` is the share of printed numbers.
    """

    things: tuple[int, int] = (1, 5)
    digits: tuple[int, int] = (1, 3)
    grounds: tuple[str, ...] = ("plain", "gradient", "noisy")
    tilt: float = 8.0
    aspect: tuple[float, float] = (0.6, 1.7)
    sides: tuple[int, int] = (64, 727)
    crop_share: float = 0.05
    number_share: float = 0.35


STAGES = (
    Difficulty(
        things=(1, 1), digits=(1, 1), grounds=("plain",), tilt=4.0, aspect=(0.8, 1.25), crop_share=0.0
    ),
    Difficulty(things=(1, 3), digits=(1, 2), tilt=6.0, aspect=(0.7, 1.45), crop_share=0.0),
    Difficulty(),
)


def draw_scene(rng: Random, difficulty: Difficulty, *, number: bool | None = None) -> Scene:
    """Draw a scene's content. `number` forces a printed number (True) or shapes (False)."""
    if number is None:
        number = rng.random() < difficulty.number_share
    width, height = _sides(rng, difficulty)
    ground, inks = _ground_and_inks(rng, difficulty)
    if number:
        return Scene(width, height, ground, number=_number(rng, difficulty, width, height, inks))
    return Scene(width, height, ground, things=_things(rng, difficulty, width, height, inks))


def _sides(rng: Random, difficulty: Difficulty) -> tuple[int, int]:
    low, high = difficulty.sides
    if rng.random() < difficulty.crop_share:
        low, high = 728, 1500
    longer = math.exp(rng.uniform(math.log(low), math.log(high + 1)))
    aspect = math.exp(rng.uniform(math.log(difficulty.aspect[0]), math.log(difficulty.aspect[1])))
    width, height = (longer, longer / aspect) if aspect > 1 else (longer * aspect, longer)
    return max(32, int(width)), max(32, int(height))


def _ground(rng: Random, difficulty: Difficulty) -> Ground:
    tone = rng.choices((235, 28, 125), (5, 3, 2))[0]
    spread = 20 if tone != 125 else 14
    base = _jitter(rng, (tone, tone, tone), spread)
    kind = rng.choice(difficulty.grounds)
    if kind == "gradient":
        end = _jitter(rng, base, 28)
        return Ground(kind, base, end, angle=rng.uniform(0.0, 360.0))
    if kind == "noisy":
        return Ground(kind, base, base, noise=rng.uniform(4.0, 14.0), seed=rng.getrandbits(32))
    return Ground(kind, base, base)


def _jitter(rng: Random, rgb: RGB, spread: int) -> RGB:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in rgb)
    return red, green, blue


def _stands_out(rgb: RGB, ground: Ground) -> bool:
    return min(math.dist(rgb, ground.rgb), math.dist(rgb, ground.rgb_end)) >= _CONTRAST


def _ink(rng: Random, inks: list[str]) -> tuple[str, RGB]:
    name = rng.choice(inks)
    return name, _jitter(rng, COLOURS[name], 8)


def _ground_and_inks(rng: Random, difficulty: Difficulty) -> tuple[Ground, list[str]]:
    """A ground, and the colours that stand out from it: three at least."""
    while True:
        ground = _ground(rng, difficulty)
        inks = [name for name, rgb in COLOURS.items() if _stands_out(rgb, ground)]
        if len(inks) >= 3:
            return ground, inks


def draw_crowd(rng: Random, difficulty: Difficulty) -> Scene:
    """A picture to learn seeing from, not to ask about: three to nine shapes and digits.

    No nought among them: squeezed with its picture, a ring looks like one.
    """
    width, height = _sides(rng, difficulty)
    ground, inks = _ground_and_inks(rng, difficulty)
    crowded = replace(difficulty, things=(3, GRID * GRID))
    return Scene(
        width, height, ground, things=_things(rng, crowded, width, height, inks, SHAPES + DIGITS[1:])
    )


def _things(
    rng: Random,
    difficulty: Difficulty,
    width: int,
    height: int,
    inks: list[str],
    crowd: tuple[str, ...] = (),
) -> tuple[Thing, ...]:
    count = rng.randint(*difficulty.things)
    if count == 1:
        return (_lone_thing(rng, difficulty, width, height, inks, crowd),)
    # Repeats of a colour or a shape make counting a question worth asking.
    some_inks = rng.sample(inks, min(len(inks), rng.choice((2, 3, 5, 9))))
    some_shapes = crowd or rng.sample(SHAPES, rng.choice((2, 3, 6, 6)))
    cells = sorted(rng.sample(range(GRID * GRID), count))
    kinds = [(rng.choice(some_shapes), *_ink(rng, some_inks), rng.choice(SIZES)) for _ in cells]
    radii = [rng.uniform(*_RADIUS[size]) for *_, size in kinds]
    centres = _centres(rng, cells, radii, width, height)
    return tuple(
        Thing(shape, colour, size, cell, x, y, radius, _tilt(rng, difficulty), rgb)
        for cell, (shape, colour, rgb, size), radius, (x, y) in zip(cells, kinds, radii, centres, strict=True)
    )


def _lone_thing(
    rng: Random,
    difficulty: Difficulty,
    width: int,
    height: int,
    inks: list[str],
    crowd: tuple[str, ...],
) -> Thing:
    size = "large" if rng.random() < 0.65 else "small"
    radius = rng.uniform(*_LONE_RADIUS[size])
    across, down = (radius * min(width, height) / side for side in (width, height))
    while True:
        x, y = ((rng.randrange(GRID) + 0.5 + rng.uniform(-0.3, 0.3)) / GRID for _ in range(2))
        x, y = min(max(x, across + 0.01), 0.99 - across), min(max(y, down + 0.01), 0.99 - down)
        # Nothing between two cells: its place must have one name.
        if min(abs(at * GRID - line) for at in (x, y) for line in (1, 2)) > 0.1:
            break
    cell = int(y * GRID) * GRID + int(x * GRID)
    colour, rgb = _ink(rng, inks)
    return Thing(rng.choice(crowd or SHAPES), colour, size, cell, x, y, radius, _tilt(rng, difficulty), rgb)


def _tilt(rng: Random, difficulty: Difficulty) -> float:
    return rng.uniform(-difficulty.tilt, difficulty.tilt)


def _centres(
    rng: Random, cells: list[int], radii: list[float], width: int, height: int
) -> list[tuple[float, float]]:
    """Centres near the middles of their cells; the jitter shrinks until nothing touches."""
    unit = min(width, height)
    spread = 0.2
    while True:
        centres = [
            (
                (cell % GRID + 0.5 + rng.uniform(-spread, spread)) / GRID,
                (cell // GRID + 0.5 + rng.uniform(-spread, spread)) / GRID,
            )
            for cell in cells
        ]
        at = [(x * width / unit, y * height / unit) for x, y in centres]
        apart = all(
            math.dist(at[i], at[j]) > 1.03 * (radii[i] + radii[j]) for i in range(len(at)) for j in range(i)
        )
        inside = all(
            radius < min(x, width / unit - x, y, height / unit - y)
            for (x, y), radius in zip(at, radii, strict=True)
        )
        if apart and inside:
            return centres
        spread *= 0.8


_NUMBER_WIDTH = {1: (0.16, 0.36), 2: (0.36, 0.64), 3: (0.56, 0.86)}


def _number(rng: Random, difficulty: Difficulty, width: int, height: int, inks: list[str]) -> Number:
    length = rng.randint(*difficulty.digits)
    text = str(rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length))
    weight = rng.choice((2, 4, 6, 8))
    angle = _tilt(rng, difficulty) / 2
    share = rng.uniform(*_NUMBER_WIDTH[length])
    stretch = rng.uniform(0.95, 1.5)
    master_width, master_height = _number_mask(text, weight, angle).size
    tall = share * width / master_width * master_height * stretch / height
    if tall > 0.9:
        share, tall = share * 0.9 / tall, 0.9
    x, y = (rng.uniform(half + 0.02, 0.98 - half) for half in (share / 2, tall / 2))
    colour, rgb = _ink(rng, inks)
    return Number(text, colour, x, y, share, stretch, weight, angle, rgb)


def render(scene: Scene, size: tuple[int, int] | None = None) -> Image.Image:
    """The scene's picture, RGB, antialiased, the same for the same scene.

    With `size` (width, height) it is drawn straight at that size: close to, and much cheaper than,
    drawing it at its own size and scaling it down without keeping the sides in proportion.
    """
    own = (scene.width, scene.height)
    width, height = size or own
    if width > own[0] or height > own[1]:
        return render(scene).resize((width, height), Image.Resampling.BILINEAR)
    over = 3 if max(width, height) <= 256 else 2
    picture = _draw_ground(scene.ground, width, height, over)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        if thing.shape in DIGITS:
            _print_number(picture, _as_number(thing, own), own)
        else:
            pen.polygon(_outline(thing, own, picture.size), fill=thing.rgb)
    if scene.number is not None:
        _print_number(picture, scene.number, own)
    return picture.reduce(over)


def _draw_ground(ground: Ground, width: int, height: int, over: int) -> Image.Image:
    full = (width * over, height * over)
    if ground.kind == "plain":
        return Image.new("RGB", full, ground.rgb)
    if ground.kind == "noisy":
        grain = np.random.default_rng(ground.seed).standard_normal((24, 24, 1)) * ground.noise
        values = np.clip(np.asarray(ground.rgb) + grain, 0, 255).astype(np.uint8)
        small = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
        return small.resize(full, Image.Resampling.NEAREST)
    angle = math.radians(ground.angle)
    right, down = math.cos(angle), math.sin(angle)
    way = np.add.outer(
        ((np.arange(height, dtype=np.float32) + 0.5) / height - 0.5) * down,
        ((np.arange(width, dtype=np.float32) + 0.5) / width - 0.5) * right,
    )
    share = (way / (abs(right) + abs(down)) + 0.5)[..., None]
    start, end = np.asarray(ground.rgb, np.float32), np.asarray(ground.rgb_end, np.float32)
    small = Image.fromarray((start + share * (end - start) + 0.5).astype(np.uint8))
    return small.resize(full, Image.Resampling.NEAREST)


def _outline(thing: Thing, own: tuple[int, int], full: tuple[int, int]) -> list[tuple[float, float]]:
    points = _SHAPE_POINTS[thing.shape]
    angle = math.radians(thing.angle)
    cos, sin = math.cos(angle), math.sin(angle)
    radius = thing.radius * min(own)
    across, down = full[0] / own[0] * radius, full[1] / own[1] * radius
    left, top = thing.x * full[0] - 0.5, thing.y * full[1] - 0.5
    return [(left + (x * cos - y * sin) * across, top + (x * sin + y * cos) * down) for x, y in points]


def _on_circle(degrees: float, radius: float = 1.0) -> tuple[float, float]:
    return radius * math.sin(math.radians(degrees)), -radius * math.cos(math.radians(degrees))


def _cross_points(arm: float = 0.98, half: float = 0.32) -> list[tuple[float, float]]:
    corner = [(-half, -arm), (half, -arm), (half, -half)]
    return [point for turn in range(4) for point in _quarter_turns(corner, turn)]


def _quarter_turns(points: list[tuple[float, float]], turns: int) -> list[tuple[float, float]]:
    for _ in range(turns):
        points = [(-y, x) for x, y in points]
    return points


_SHAPE_POINTS: dict[str, list[tuple[float, float]]] = {
    "circle": [_on_circle(a) for a in range(0, 360, 6)],
    "square": [_on_circle(a, 1.12) for a in (45, 135, 225, 315)],
    "triangle": [(0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)],
    "star": [_on_circle(36 * i, 1.08 if i % 2 == 0 else 0.44) for i in range(10)],
    "cross": _cross_points(),
    "ring": [_on_circle(a) for a in range(0, 361, 6)] + [_on_circle(a, 0.56) for a in range(360, -1, -6)],
}


@functools.lru_cache(maxsize=64)
def _digit_mask(digit: str, weight: int) -> Image.Image:
    font = ImageFont.load_default(size=_GLYPH)
    left, _, right, _ = (int(v) for v in font.getbbox(digit, stroke_width=weight))
    _, line_top, _, line_bottom = (int(v) for v in font.getbbox("0123456789", stroke_width=weight))
    mask = Image.new("L", (right - left, line_bottom - line_top))
    ImageDraw.Draw(mask).text((-left, -line_top), digit, fill=255, font=font, stroke_width=weight)
    return mask


def _number_mask(text: str, weight: int, angle: float) -> Image.Image:
    masks = [_digit_mask(digit, weight) for digit in text]
    gap = _GLYPH // 12
    strip = Image.new("L", (sum(m.width for m in masks) + gap * (len(masks) - 1), masks[0].height))
    left = 0
    for mask in masks:
        strip.paste(mask, (left, 0))
        left += mask.width + gap
    return strip.rotate(angle, Image.Resampling.BILINEAR, expand=True) if abs(angle) > 0.5 else strip


def _as_number(thing: Thing, own: tuple[int, int]) -> Number:
    """A digit that stands as a thing: as tall as the thing, its weight and stretch from where it stands."""
    weight = 2 * (1 + int(thing.x * 1000) % 4)
    stretch = 0.95 + int(thing.y * 1000) % 10 / 20
    mask = _number_mask(thing.shape, weight, thing.angle)
    scale = 1.9 * thing.radius * min(own) / (mask.height * stretch)
    width = scale * mask.width / own[0]
    return Number(thing.shape, thing.colour, thing.x, thing.y, width, stretch, weight, thing.angle, thing.rgb)


def _print_number(picture: Image.Image, number: Number, own: tuple[int, int]) -> None:
    mask = _number_mask(number.text, number.weight, number.angle)
    scale = number.width * own[0] / mask.width
    tall = mask.height * scale * number.stretch / own[1]
    width, height = max(1, round(number.width * picture.width)), max(1, round(tall * picture.height))
    mask = mask.resize((width, height), Image.Resampling.BILINEAR)
    left = round(number.x * picture.width - width / 2)
    top = round(number.y * picture.height - height / 2)
    picture.paste(number.rgb, (left, top, left + width, top + height), mask)
