"""Handwritten digits as a camera would see them.

A glyph of scikit-learn's 8x8 digits is drawn as ink on paper, turned, tilted, lit unevenly, blurred and buried in
sensor noise. Training, the held-out figures and the virtual camera all use this one renderer. The pictures are
synthetic; only the handwriting is real.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# The range of the glyphs' pixels: each counts the inked pixels of a 4x4 block of the original scan.
GLYPH_MAX = 16
# The glyph is first enlarged by this factor, which gives strokes smooth edges.
_ENLARGE = 8


def render(glyph: NDArray[np.uint8], rng: np.random.Generator, size: tuple[int, int] = (120, 160)) -> NDArray[np.uint8]:
    """Draw one frame with one digit in it.

    The digit lies wholly inside the centre square of the frame, as where a camera is aimed at its subject. The
    frame depends on nothing but the arguments and the state of `rng`.

    Args:
        glyph: uint8, [8, 8], 0 (paper) to 16 (ink).
        rng: where all chance comes from.
        size: height and width of the frame in pixels.

    Returns:
        uint8, [height, width, 3] in BGR order.
    """
    height, width = size
    ink = _stroke(glyph, rng, height, width)[:, :, None]
    paper_level, ink_level = rng.uniform(150, 235), rng.uniform(15, 75)
    if rng.random() < 0.25:  # chalk on a board
        paper_level, ink_level = ink_level, paper_level
    # Tints differ a little by channel: colour is there but tells nothing.
    paper = (paper_level * rng.uniform(0.9, 1.1, 3)).astype(np.float32) + _texture(rng, height, width)
    pen = (ink_level * rng.uniform(0.9, 1.1, 3)).astype(np.float32)
    scene = paper + (pen - paper) * ink
    scene *= _lighting(rng, height, width)[:, :, None]
    return _expose(scene.astype(np.float32, copy=False), rng)


def _stroke(glyph: NDArray[np.uint8], rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Coverage by ink, float32 in 0 … 1, [height, width]: the glyph enlarged and put in perspective."""
    # A margin of paper, since strokes run up to the glyph's edge and would end in a cut there.
    framed = np.pad(glyph.astype(np.float32) / GLYPH_MAX, 1)
    side = framed.shape[0] * _ENLARGE
    large = cv2.resize(framed, (side, side), interpolation=cv2.INTER_CUBIC)
    # A steeper edge about a random level makes thin and thick pens; not so steep that small loops open or close.
    large = np.clip((large - rng.uniform(0.4, 0.5)) * rng.uniform(1.4, 2.5) + 0.5, 0, 1)
    square = min(height, width)
    half = square * rng.uniform(0.36, 0.52)
    angle = np.deg2rad(rng.uniform(-15, 15))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)
    corners *= rng.uniform(0.85, 1.0, 2)  # narrower or flatter
    # Each corner moves by itself: what a camera that does not look straight down sees.
    corners = (corners + rng.uniform(-0.07, 0.07, corners.shape)) @ turn.T * half
    room = np.maximum(square / 2 - np.abs(corners).max(axis=0), 0)
    centre = np.array([width, height]) / 2 + rng.uniform(-1, 1, 2) * room
    source = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    matrix = cv2.getPerspectiveTransform(source, (corners + centre).astype(np.float32))
    warped: NDArray[np.float32] = cv2.warpPerspective(
        large.astype(np.float32), matrix, (width, height), flags=cv2.INTER_LINEAR
    ).astype(np.float32)
    return warped


def _texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Stains, grain and now and then a ruled line: float32 levels about zero, [height, width, 1]."""
    stains = rng.normal(0, rng.uniform(2, 12), (5, 7)).astype(np.float32)
    level = np.asarray(cv2.resize(stains, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    if rng.random() < 0.3:
        ends = rng.uniform(0, 1, 4) * [width, height, width, height]
        line = np.zeros((height, width), np.float32)
        start, stop = (int(ends[0]), int(ends[1])), (int(ends[2]), int(ends[3]))
        cv2.line(line, start, stop, 1.0, 1, cv2.LINE_AA)
        level = level + line * np.float32(rng.uniform(-30, 30))
    return level[:, :, None]


def _lighting(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Light by place: a gradient in a random direction, float32 factors about 1, [height, width]."""
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    light: NDArray[np.float32] = 1 + np.float32(depth) * (
        np.float32(np.sin(angle)) * rows + np.float32(np.cos(angle)) * columns
    )
    return light


def _expose(scene: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """What the sensor makes of the scene: blur, exposure, noise, and eight bits a channel."""
    blurred = np.asarray(cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.3, 1.6)), np.float32)
    exposure = np.float32(rng.uniform(0.6, 1.2))
    noise = rng.standard_normal(scene.shape, np.float32) * np.float32(rng.uniform(1, 9))
    return np.clip(np.rint(blurred * exposure + noise), 0, 255).astype(np.uint8)
