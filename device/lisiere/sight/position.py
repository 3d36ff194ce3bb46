"""Moved and covered: the picture against a slow mean of the pictures before it.

Both look at structure and not at brightness: what is compared is the small picture, freed of its local mean and spread.
Objects that pass or stay hide a part of the background; a moved camera leaves nothing where it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lisiere.sight.history import History
from lisiere.sight.measures import Grey

_TILE = 8  # pixels of the small picture
_LOCAL = 9  # pixels over which local mean and spread are taken
_SPREAD = 3.0  # grey levels: smaller differences are noise and are not made larger
_EDGE_MIN, _EDGE_MOST = 5.0, 30.0  # grey levels a pixel: a tile with less has no structure; with more, no more weight
_TRUST_LOST = 0.5  # the background is one when usually no more of it is hidden
_TILE_MATCH = 0.4
_AREA_EDGE, _AREA_MIN = 4.0, 0.03  # grey levels a pixel that make an edge; a background has some at least
# Below this share of the usual match, or this match, it is asked whether the picture fits elsewhere.
_DOUBT, _DOUBTFUL = 0.75, 0.65
_TAU_S = 10.0  # the mean's memory


@dataclass(frozen=True, slots=True)
class Place:
    """One frame against the background.

    Attributes:
        match: correlation of all structure, -1 … 1.
        lost: share of the background's tiles whose structure is not there, 0 … 1, by weight.
        rim: the same along that side of the picture where the least is lost.
        shift: (columns, rows), in pixels of the small picture, by which it fits better; (0, 0) when it does not.
        fit: correlation when shifted so.
        loss: share of the background's edges that the picture lacks, wherever its others are.
        total: its edges by the background's.
        area: how much of the picture has any edges, by how much of the background has.
    """

    match: float
    lost: float
    rim: float
    shift: tuple[int, int]
    fit: float
    loss: float
    total: float
    area: float


class Position:
    """The background of one camera, and how each frame compares with it."""

    def __init__(self) -> None:
        self._mean: Grey | None = None
        self._edges: Grey
        self._area = 0.0
        self._weights: Grey
        self._weighty = False
        self._sides: tuple[NDArray[np.intp], ...] = ()
        self._structure: Grey
        self._frames = 0
        self._usual = History()  # of the match
        self._lost = History()

    @property
    def trusted(self) -> bool:
        """Whether there is a background: most of it is usually there."""
        return self._lost.known and self._lost.high <= _TRUST_LOST

    @property
    def usually_lost(self) -> float:
        """The share of the background that nearly all good frames hide less of."""
        return self._lost.high

    @property
    def edged(self) -> bool:
        """Whether what is usual has edges enough for missing them."""
        return self._usual.known and self._weighty

    def flat(self, thumb: Grey) -> float:
        """Return the steepest edge that nearly all of the picture stays below, in grey levels a pixel."""
        return float(np.quantile(_edges(thumb)[0], 0.95))

    def look(self, thumb: Grey) -> Place | None:
        """Compare a frame with the background; None before there is one."""
        if self._mean is None:
            return None
        structure, (edges, area) = _structure(thumb), _edges(thumb)
        mine, theirs = _tiles(structure), _tiles(self._structure)
        matches = _correlation(mine, theirs)
        weights = self._weights
        gone = matches < _TILE_MATCH
        match = float(_correlation(structure.reshape(1, -1), self._structure.reshape(1, -1))[0])
        usual = float(self._edges.sum()) or 1.0
        shift, fit = (0, 0), match
        if match < max(_DOUBT * self._usual.low, _DOUBTFUL):
            shift, fit = _shift(self._structure, structure)
        return Place(
            match=match,
            lost=_share(weights, gone),
            rim=min(_share(weights[side], gone[side]) for side in self._sides),
            shift=shift,
            fit=fit,
            loss=1 - float(np.minimum(edges, self._edges).sum()) / usual,
            total=float(edges.sum()) / usual,
            area=area / max(self._area, _AREA_MIN),
        )

    def learn(self, thumb: Grey, passed_s: float) -> None:
        """Take a good frame into the background: a plain mean at first, then one that forgets within 10 s."""
        edges, area = _edges(thumb)
        if self._mean is None:
            self._mean, self._edges, self._area = thumb, edges, area
        else:
            self._frames += 1
            share = max(1 / (self._frames + 1), min(1.0, passed_s / _TAU_S))
            self._mean = self._mean + np.float32(share) * (thumb - self._mean)
            self._edges = self._edges + np.float32(share) * (edges - self._edges)
            self._area += share * (area - self._area)
        self._structure = _structure(self._mean)
        self._weights = np.where(self._edges >= _EDGE_MIN, np.minimum(self._edges, _EDGE_MOST), 0).astype(np.float32)
        self._weighty = float(np.quantile(self._edges, 0.9)) >= _EDGE_MIN
        self._sides = self._sides or _sides(*thumb.shape)

    def remember(self, place: Place) -> None:
        """Learn how like the background a good frame usually is."""
        self._usual.add(place.match)
        self._lost.add(place.lost)


def _share(weights: Grey, gone: NDArray[np.bool_]) -> float:
    """The share of the weight that is gone; all of it where there is none, so that what is empty says nothing."""
    whole = float(weights.sum())
    return float(weights[gone].sum()) / whole if whole else 1.0


def _sides(height: int, width: int) -> tuple[NDArray[np.intp], ...]:
    """The numbers of the tiles along the top, the bottom, the left and the right."""
    tiles = np.arange(_across(height) * _across(width)).reshape(_across(height), _across(width))
    return tiles[0], tiles[-1], tiles[:, 0], tiles[:, -1]


def _across(pixels: int) -> int:
    return max(1, pixels // _TILE)


def _structure(thumb: Grey) -> Grey:
    import cv2

    detail = thumb - cv2.blur(thumb, (_LOCAL, _LOCAL))
    spread = cv2.sqrt(cv2.blur(detail * detail, (_LOCAL, _LOCAL)))
    return np.asarray(detail / (spread + _SPREAD), np.float32)


def _edges(thumb: Grey) -> tuple[Grey, float]:
    """The steepest gradient of each tile, in grey levels a pixel; and the share of pixels that have any."""
    import cv2

    across = cv2.Sobel(thumb, cv2.CV_32F, 1, 0, scale=0.25)
    down = cv2.Sobel(thumb, cv2.CV_32F, 0, 1, scale=0.25)
    steep = np.asarray(cv2.magnitude(across, down), np.float32)
    return np.asarray(_tiles(steep).max(axis=1), np.float32), float(np.count_nonzero(steep > _AREA_EDGE)) / steep.size


def _tiles(picture: Grey) -> Grey:
    """Cut a picture into tiles: [tiles, pixels]; what is left over at the right and below is left out."""
    rows, columns = _across(picture.shape[0]), _across(picture.shape[1])
    high, wide = picture.shape[0] // rows, picture.shape[1] // columns
    cut = picture[: rows * high, : columns * wide].reshape(rows, high, columns, wide)
    return np.ascontiguousarray(cut.swapaxes(1, 2)).reshape(rows * columns, high * wide)


def _correlation(left: Grey, right: Grey) -> NDArray[np.float32]:
    """Cosine of each pair of rows; 0 where one of them is empty."""
    both = np.einsum("ij,ij->i", left, right)
    power = np.einsum("ij,ij->i", left, left) * np.einsum("ij,ij->i", right, right)
    return np.asarray(both / np.sqrt(power + 1e-6), np.float32)


def _shift(background: Grey, picture: Grey) -> tuple[tuple[int, int], float]:
    """Find the shift by phase correlation, and how well the parts that overlap then fit.

    Source: Kuglin and Hines, The phase correlation image alignment method, 1975.
    """
    import cv2

    height, width = picture.shape
    if height < 2 or width < 2:  # a window over one pixel does not exist, nor does a shift along it
        return (0, 0), 0.0
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    # Copies: where no padding is needed, OpenCV multiplies the window into what it was given.
    (across, down), _ = cv2.phaseCorrelate(background.copy(), picture.copy(), window)
    if not (abs(across) < width / 2 and abs(down) < height / 2):
        return (0, 0), 0.0
    x, y = round(across), round(down)
    mine = picture[max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)]
    theirs = background[max(0, -y) : height + min(0, -y), max(0, -x) : width + min(0, -x)]
    return (x, y), float(_correlation(mine.reshape(1, -1), theirs.reshape(1, -1))[0])
