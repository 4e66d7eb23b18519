"""Procedural driving scenes: an image and its mask, drawn from the same shapes."""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from models.scene_seg import PALETTE

COLOUR_OF = {name: colour for name, colour, _ in PALETTE}
Generator = np.random.Generator
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Mood:
    """Light and weather of a scene; strengths are 0..1."""

    brightness: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)  # gain of R, G, B
    fog: float = 0.0
    rain: float = 0.0
    snow: float = 0.0
    night: bool = False


@dataclass
class Canvas:
    """An image and its mask that every shape is drawn on together."""

    rgb: np.ndarray  # uint8 (H, W, 3)
    mask: np.ndarray  # uint8 (H, W, 3), colours of the palette
    lights: list[tuple[tuple[int, int], int, Colour]] = field(default_factory=list)  # centre, radius, colour

    def polygon(self, points: np.ndarray, colour: Colour, label: str | None) -> None:
        """Fill a polygon of (x, y) points; without a label it is paint or shadow on what is there."""
        corners = np.round(np.asarray(points)).astype(np.int32)
        cv2.fillPoly(self.rgb, [corners], colour, cv2.LINE_AA)
        if label:
            cv2.fillPoly(self.mask, [corners], COLOUR_OF[label], cv2.LINE_8)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, label: str | None) -> None:
        """Fill an upright rectangle."""
        self.polygon(np.array([(left, top), (right, top), (right, bottom), (left, bottom)]), colour, label)

    def disc(self, x: float, y: float, radius: float, colour: Colour, label: str | None) -> None:
        """Fill a circle."""
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        self.polygon(np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1), colour, label)


@dataclass(frozen=True)
class Road:
    """A road in perspective: depth t runs from 0 at the horizon to 1 at the bottom edge of the scene."""

    width: int
    horizon: float  # y of the vanishing point
    bottom: float  # y where t is 1
    vanishing_x: float
    centre_x: float  # of the road at the bottom
    half_width: float  # of the road at the bottom
    bend: float

    def y(self, t: float | np.ndarray) -> float | np.ndarray:
        """Image row of a depth."""
        return self.horizon + t * (self.bottom - self.horizon)

    def x(self, t: float | np.ndarray, side: float) -> float | np.ndarray:
        """Image column at a depth; `side` is -1 at the left edge of the road, 1 at the right one."""
        centre = self.vanishing_x + t * (self.centre_x - self.vanishing_x) + self.bend * t * (1 - t)
        return centre + side * self.half_width * t

    def band(self, near: float, far: float, left: float, right: float) -> np.ndarray:
        """The polygon between two sides and two depths."""
        t = np.linspace(far, near, 16)
        edges = [np.stack([self.x(t, side), self.y(t)], axis=1) for side in (left, right)]
        return np.concatenate([edges[0], edges[1][::-1]])


def make_scene(
    rng: Generator, height: int, width: int, mood: Mood = Mood(), horizon: float = 0.42, bottom: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """One scene: uint8 RGB (height, width, 3) and its mask in the palette's colours.

    Args:
        horizon: height of the horizon as a share of the image, from the top.
        bottom: where the road leaves the view; below it is the bonnet of the own car, unlabelled.
    """
    canvas = Canvas(np.zeros((height, width, 3), np.uint8), np.zeros((height, width, 3), np.uint8))
    road = Road(
        width=width,
        horizon=height * horizon * rng.uniform(0.92, 1.08),
        bottom=height * bottom,
        vanishing_x=width * rng.uniform(0.4, 0.6),
        centre_x=width * rng.uniform(0.42, 0.58),
        half_width=width * rng.uniform(0.38, 0.7),
        bend=width * rng.normal(0, 0.12),
    )
    draw_sky(canvas, road, rng)
    draw_ground(canvas, road, rng)
    for t, draw in sorted(place_objects(rng), key=lambda placed: placed[0]):
        draw(canvas, road, t, rng)
    if bottom < 1:
        canvas.box(0, road.bottom, width, height, vary(rng, (40, 42, 48)), "unlabelled")
    return finish(canvas, road, mood, rng), canvas.mask


def vary(rng: Generator, colour: Colour, amount: int = 25) -> Colour:
    """A colour near `colour`."""
    return tuple(int(value) for value in np.clip(np.array(colour) + rng.normal(0, amount, 3), 0, 255))


def grey(rng: Generator, low: int, high: int) -> Colour:
    """A grey with a slight tint."""
    return vary(rng, (int(rng.integers(low, high)),) * 3, 6)


def draw_sky(canvas: Canvas, road: Road, rng: Generator) -> None:
    """A gradient with clouds, and hills or a tree line at the horizon."""
    height, width = canvas.mask.shape[:2]
    top, low = np.array(vary(rng, (90, 150, 220), 30)), np.array(vary(rng, (200, 215, 230), 20))
    share = np.linspace(0, 1, height)[:, None, None] / max(road.horizon / height, 0.1)
    canvas.rgb[:] = np.clip(top + (low - top) * np.minimum(share, 1), 0, 255).astype(np.uint8)
    canvas.mask[:] = COLOUR_OF["sky"]
    clouds = cv2.resize(rng.random((6, 10), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    cover = (np.clip(clouds - rng.uniform(0.3, 0.9), 0, 1) * 1.6)[..., None].clip(0, 0.9)
    canvas.rgb[:] = (canvas.rgb * (1 - cover) + np.array(grey(rng, 190, 250)) * cover).astype(np.uint8)
    x = np.linspace(0, width, 12)
    hills = road.horizon - height * np.abs(rng.normal(0.03, 0.025, len(x)))
    outline = np.concatenate([np.stack([x, hills], axis=1), [(width, road.horizon + 2), (0, road.horizon + 2)]])
    canvas.polygon(outline, vary(rng, (70, 95, 80)), "background objects")


def draw_ground(canvas: Canvas, road: Road, rng: Generator) -> None:
    """Verge, pavement, kerb, road and its markings."""
    height, width = canvas.mask.shape[:2]
    verge = vary(rng, [(90, 120, 60), (150, 135, 105), (125, 125, 120)][rng.integers(3)])
    canvas.box(0, road.horizon, width, height, verge, "background objects")
    pavement = rng.uniform(1.15, 1.6)
    canvas.polygon(road.band(1, 0.01, -pavement, pavement), grey(rng, 110, 190), "background objects")
    canvas.polygon(road.band(1, 0.01, -1.06, 1.06), grey(rng, 120, 200), "road-edge delimiter")
    asphalt = grey(rng, 60, 150)
    canvas.polygon(road.band(1, 0.01, -1, 1), asphalt, "road")
    for _ in range(int(rng.integers(0, 5))):  # patches and wet spots
        t, side = rng.uniform(0.1, 0.95), rng.uniform(-0.8, 0.6)
        canvas.polygon(road.band(min(t * 1.25, 1), t, side, side + rng.uniform(0.1, 0.5)), vary(rng, asphalt, 12), None)
    paint = vary(rng, [(235, 235, 230), (225, 190, 70)][rng.integers(2)], 10)
    for side in (-0.93, 0.93):
        canvas.polygon(road.band(1, 0.05, side - 0.012, side + 0.012), paint, None)
    for side in ((0.0,), (-0.33, 0.33))[rng.integers(2)]:
        edges = np.geomspace(0.06, 1, 17)
        for far, near in zip(edges[:-1:2], edges[1::2], strict=True):
            canvas.polygon(road.band(near, far, side - 0.012, side + 0.012), paint, None)


def place_objects(rng: Generator) -> list[tuple[float, Callable]]:
    """(depth, how to draw it) of everything that stands on the ground."""
    counts = (
        (draw_building, 4, 12),
        (draw_tree, 1, 7),
        (draw_pole, 0, 5),
        (draw_car, 1, 6),
        (draw_lorry, 0, 3),
        (draw_person, 0, 6),
        (draw_cyclist, 0, 3),
        (draw_obstacle, 0, 4),
    )
    return [(depth(rng), draw) for draw, low, high in counts for _ in range(int(rng.integers(low, high)))]


def depth(rng: Generator) -> float:
    """More objects far away than near."""
    return float(rng.uniform(0.4, 0.95) ** 2)


def off_road(rng: Generator, nearest: float, farthest: float) -> float:
    """A side left or right of the road."""
    return float(rng.choice((-1, 1)) * rng.uniform(nearest, farthest))


def draw_building(canvas: Canvas, road: Road, t: float, rng: Generator) -> None:
    """A front with rows of windows."""
    scale = road.half_width * max(t, 0.12)
    x, base = road.x(t, off_road(rng, 1.9, 3.6)), road.y(t)
    w, h = scale * rng.uniform(0.5, 1.1), scale * rng.uniform(0.8, 2.4)
    front = [grey(rng, 90, 210), vary(rng, (160, 90, 70)), vary(rng, (190, 175, 140))][rng.integers(3)]
    canvas.box(x - w / 2, base - h, x + w / 2, base, front, "background objects")
    glass = vary(rng, (70, 85, 105)) if rng.random() < 0.7 else vary(rng, (235, 210, 130))
    rows, columns = int(rng.integers(2, 7)), int(rng.integers(2, 6))
    for row in range(rows):
        for column in range(columns):
            left, top = x - w / 2 + w * (column + 0.25) / columns, base - h + h * (row + 0.25) / (rows + 0.5)
            canvas.box(left, top, left + 0.5 * w / columns, top + 0.5 * h / rows, glass, None)


def draw_tree(canvas: Canvas, road: Road, t: float, rng: Generator) -> None:
    """A trunk and a crown of overlapping discs."""
    scale = road.half_width * t
    x, base = road.x(t, off_road(rng, 1.5, 3)), road.y(t)
    h = scale * rng.uniform(0.5, 1.2)
    canvas.box(x - 0.03 * scale, base - h, x + 0.03 * scale, base, vary(rng, (85, 65, 50), 10), "background objects")
    leaves = vary(rng, (60, 100, 50))
    for _ in range(6):
        dx, dy = rng.normal(0, 0.14, 2) * scale
        canvas.disc(x + dx, base - h + dy, scale * rng.uniform(0.12, 0.25), vary(rng, leaves, 10), "background objects")


def draw_pole(canvas: Canvas, road: Road, t: float, rng: Generator) -> None:
    """A post with a traffic sign or a lamp."""
    scale = road.half_width * t
    x, base = road.x(t, off_road(rng, 1.12, 1.5)), road.y(t)
    h, half = scale * rng.uniform(0.5, 1.0), max(scale * 0.012, 0.6)
    canvas.box(x - half, base - h, x + half, base, grey(rng, 70, 160), "background objects")
    sign = [(200, 40, 40), (40, 80, 180), (240, 220, 120)][rng.integers(3)]
    canvas.disc(x, base - h, scale * 0.06, vary(rng, sign, 15), "background objects")
    if rng.random() < 0.5:
        canvas.lights.append(((int(x), int(base - h)), int(scale * 0.25), (255, 225, 160)))


def draw_car(canvas: Canvas, road: Road, t: float, rng: Generator) -> None:
    """A car from behind or ahead, on the road or parked beside it."""
    scale = road.half_width * t
    side = rng.uniform(-0.75, 0.75) if rng.random() < 0.75 else off_road(rng, 1.05, 1.4)
    x, base = road.x(t, side), road.y(t)
    w, h = scale * rng.uniform(0.26, 0.36), scale * rng.uniform(0.2, 0.28)
    paint = [grey(rng, 20, 230), vary(rng, (170, 30, 35)), vary(rng, (40, 70, 140)), vary(rng, (190, 190, 60))]
    body, label = paint[rng.integers(4)], "small vehicle"
    shadow = np.array([(x - w * 0.6, base + h * 0.06), (x + w * 0.6, base + h * 0.06), (x + w * 0.5, base - h * 0.1)])
    canvas.polygon(shadow, (30, 30, 32), None)
    for wheel in (-0.36, 0.36):
        canvas.box(x + wheel * w - w * 0.09, base - h * 0.3, x + wheel * w + w * 0.09, base, (20, 20, 22), label)
    canvas.box(x - w / 2, base - h * 0.62, x + w / 2, base - h * 0.14, body, label)
    roof = [
        (x - w * 0.46, base - h * 0.6),
        (x - w * 0.34, base - h),
        (x + w * 0.34, base - h),
        (x + w * 0.46, base - h * 0.6),
    ]
    canvas.polygon(np.array(roof), body, label)
    canvas.box(x - w * 0.32, base - h * 0.92, x + w * 0.32, base - h * 0.64, vary(rng, (50, 60, 75), 10), None)
    lamp = [(225, 30, 30), (255, 250, 220)][rng.integers(2)]
    for place in (-0.4, 0.4):
        canvas.disc(x + place * w, base - h * 0.45, max(w * 0.06, 0.8), lamp, None)
        canvas.lights.append(((int(x + place * w), int(base - h * 0.45)), int(w * 0.35), lamp))


def draw_lorry(canvas: Canvas, road: Road, t: float, rng: Generator) -> None:
    """A lorry or a bus."""
    scale = road.half_width * t
    x, base = road.x(t, rng.uniform(-0.6, 0.6)), road.y(t)
    w, h = scale * rng.uniform(0.34, 0.44), scale * rng.uniform(0.45, 0.65)
    body, label = (
        [grey(rng, 150, 250), vary(rng, (200, 120, 40)), vary(rng, (60, 110, 160))][rng.integers(3)],
        "large vehicle",
    )
    for wheel in (-0.36, 0.36):
        canvas.box(x + wheel * w - w * 0.08, base - h * 0.15, x + wheel * w + w * 0.08, base, (20, 20, 22), label)
    canvas.box(x - w / 2, base - h, x + w / 2, base - h * 0.08, body, label)
    canvas.box(x - w * 0.42, base - h * 0.9, x + w * 0.42, base - h * 0.55, vary(rng, (60, 70, 85), 15), None)
    for place in (-0.42, 0.42):
        canvas.disc(x + place * w, base - h * 0.18, max(w * 0.05, 0.8), (225, 40, 30), None)
        canvas.lights.append(((int(x + place * w), int(base - h * 0.18)), int(w * 0.25), (225, 40, 30)))


def draw_person(canvas: Canvas, road: Road, t: float, rng: Generator) -> None:
    """A pedestrian, mostly on the pavement."""
    scale = road.half_width * t
    side = off_road(rng, 1.1, 1.5) if rng.random() < 0.7 else rng.uniform(-0.9, 0.9)
    draw_figure(canvas, road.x(t, side), road.y(t), scale * rng.uniform(0.2, 0.3), rng)


def draw_cyclist(canvas: Canvas, road: Road, t: float, rng: Generator) -> None:
    """A person on a bicycle, at the edge of the road."""
    h = road.half_width * t * rng.uniform(0.2, 0.28)
    x, base = road.x(t, off_road(rng, 0.75, 0.95)), road.y(t)
    for wheel in (-0.25, 0.25):
        canvas.disc(x + wheel * h, base - h * 0.2, h * 0.2, (35, 35, 38), "vulnerable living")
    draw_figure(canvas, x, base - h * 0.25, h, rng)


def draw_figure(canvas: Canvas, x: float, base: float, h: float, rng: Generator) -> None:
    """Legs, coat and head of a person of height `h`."""
    label = "vulnerable living"
    legs, coat = vary(rng, (50, 50, 70)), vary(rng, [(160, 50, 50), (60, 90, 150), (90, 90, 90)][rng.integers(3)])
    for foot in (-0.1, 0.1):
        hips = [
            (x, base - h * 0.5),
            (x + foot * h, base),
            (x + foot * h * 1.6, base),
            (x + foot * h * 0.8, base - h * 0.5),
        ]
        canvas.polygon(np.array(hips), legs, label)
    canvas.box(x - h * 0.13, base - h * 0.84, x + h * 0.13, base - h * 0.42, coat, label)
    canvas.disc(x, base - h * 0.91, h * 0.085, vary(rng, (200, 160, 130)), label)


def draw_obstacle(canvas: Canvas, road: Road, t: float, rng: Generator) -> None:
    """A cone, a barrel or a box on the road."""
    size = road.half_width * t * rng.uniform(0.07, 0.13)
    x, base, label = road.x(t, rng.uniform(-0.95, 0.95)), road.y(t), "other foreground"
    if rng.random() < 0.6:
        cone = np.array([(x - size * 0.5, base), (x, base - size * 1.5), (x + size * 0.5, base)])
        canvas.polygon(cone, vary(rng, (235, 110, 40), 15), label)
        canvas.box(x - size * 0.2, base - size * 0.8, x + size * 0.2, base - size * 0.55, (240, 240, 240), None)
    else:
        canvas.box(x - size * 0.6, base - size * 1.2, x + size * 0.6, base, vary(rng, (140, 105, 70)), label)


def finish(canvas: Canvas, road: Road, mood: Mood, rng: Generator) -> np.ndarray:
    """Texture, shadow, light, weather, blur and noise; the mask is not concerned."""
    height, width = canvas.mask.shape[:2]
    image = canvas.rgb.astype(np.float32)
    texture = cv2.resize(rng.normal(1, 0.08, (height // 6 + 1, width // 6 + 1)), (width, height))
    image *= texture[..., None]
    if rng.random() < 0.5 and not mood.night:
        image *= _shadow(height, width, road, rng)[..., None]
    image *= np.array(mood.cast, np.float32) * mood.brightness
    if mood.night:
        image += _glow(canvas, road)
    rows = np.arange(height)[:, None, None]
    distance = np.clip(1 - (rows - road.horizon) / (road.bottom - road.horizon), 0, 1)
    haze = np.clip(mood.fog * (0.25 + distance), 0, 0.92)
    image = image * (1 - haze) + haze * np.array([205, 208, 212]) * max(mood.brightness, 0.4)
    for strength, length in ((mood.rain, height / 18), (mood.snow, 1.5)):
        image += _streaks(height, width, strength, length, rng)
    if rng.random() < 0.6:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.1))
    image += rng.normal(0, rng.uniform(1, 6), (height, width, 1))
    return np.clip(image, 0, 255).astype(np.uint8)


def _shadow(height: int, width: int, road: Road, rng: Generator) -> np.ndarray:
    shade = np.ones((height, width), np.float32)
    t = rng.uniform(0.2, 0.9)
    cv2.fillPoly(
        shade, [road.band(min(t * 1.6, 1), t, -3, rng.uniform(-0.8, 3)).astype(np.int32)], rng.uniform(0.5, 0.75)
    )
    return cv2.GaussianBlur(shade, (0, 0), 2)


def _glow(canvas: Canvas, road: Road) -> np.ndarray:
    """Lamps, and the own headlights on the road."""
    light = np.zeros(canvas.rgb.shape, np.float32)
    for centre, radius, colour in canvas.lights:
        cv2.circle(light, centre, max(radius, 1), tuple(0.5 * value for value in colour), -1)
    light = cv2.GaussianBlur(light, (0, 0), canvas.rgb.shape[1] / 60)
    beam = np.zeros(canvas.rgb.shape, np.float32)
    cv2.fillPoly(beam, [road.band(1, 0.15, -0.7, 0.7).astype(np.int32)], (70, 68, 58))
    return light + cv2.GaussianBlur(beam, (0, 0), canvas.rgb.shape[1] / 20)


def _streaks(height: int, width: int, strength: float, length: float, rng: Generator) -> np.ndarray:
    layer = np.zeros((height, width, 1), np.float32)
    for x, y in zip(*(rng.uniform(0, size, int(600 * strength)) for size in (width, height)), strict=True):
        cv2.line(layer, (int(x), int(y)), (int(x + length * 0.15), int(y + length)), float(rng.uniform(40, 110)), 1)
    return layer
