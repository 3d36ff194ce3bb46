"""Settings of what a model gets to see of a camera's frames: region of interest, mask, rotation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta
from msgspec.structs import replace

from lisiere.documents import Absolute, Part
from lisiere.errors import ConfigError

# Pixels, or shares of the frame's width and height.
Place = Annotated[float, Meta(ge=0, le=65535)]
Polygon = Annotated[tuple[tuple[Place, Place], ...], Meta(min_length=3, max_length=1000)]


class ViewConfig(Part, frozen=True, kw_only=True):
    """What the model sees of each frame. Places are in the camera's own frame: mask, then region, rotate and flip.

    Numbers of a region or polygon are pixels, whole ones, or shares of the frame when none of them is above 1.

    Attributes:
        region: x, y, width and height of what is of interest.
        crop: the frame becomes the region; false: what is outside turns black, and the frame keeps its size.
        mask: polygons of [x, y] that turn black; or the file of an image of the frame's size, black where the frame is
            to turn black and white where it is seen.
        rotate: degrees clockwise.
        flip: afterwards; `horizontal` changes left and right.
    """

    region: tuple[Place, Place, Place, Place] | None = None
    crop: bool = True
    mask: Annotated[tuple[Polygon, ...], Meta(min_length=1, max_length=100)] | str | None = None
    rotate: Annotated[int, Meta(ge=0, le=270, multiple_of=90)] = 0
    flip: Literal["horizontal", "vertical"] | None = None


def are_shares(places: Iterable[float]) -> bool:
    """Whether places are shares of the frame, and not pixels."""
    return all(place <= 1 for place in places)


def resolve_view(view: ViewConfig, absolute: Absolute, at: str) -> ViewConfig:
    """Return a view whose mask's path is absolute; `at` is where the configuration has it."""
    return replace(view, mask=absolute(view.mask, f"{at}.mask")) if isinstance(view.mask, str) else view


def check_view(view: ViewConfig, at: str) -> None:
    """Check what the types cannot say. Whether it fits a frame is known when one comes.

    Raises:
        ConfigError: a region is empty or leaves the frame, a place is between pixels, a mask's file is absent.
    """
    if view.region is not None:
        _check_places(view.region, f"{at}.region")
        x, y, width, height = view.region
        if width == 0 or height == 0:
            raise ConfigError("The region is empty: it is [x, y, width, height].", f"{at}.region")
        # Sums of decimal fractions may exceed 1 by a rounding.
        if are_shares(view.region) and max(x + width, y + height) > 1 + 1e-9:
            raise ConfigError("The region leaves the frame: it is [x, y, width, height].", f"{at}.region")
    if isinstance(view.mask, str):
        if not Path(view.mask).is_file():
            raise ConfigError(f"There is no file {view.mask}.", f"{at}.mask")
    else:
        for index, polygon in enumerate(view.mask or ()):
            _check_places([place for point in polygon for place in point], f"{at}.mask[{index}]")


def _check_places(places: Iterable[float], at: str) -> None:
    places = list(places)
    if not are_shares(places) and any(place != int(place) for place in places):
        raise ConfigError("Some numbers are above 1, so these are pixels; pixels are whole numbers.", at)
