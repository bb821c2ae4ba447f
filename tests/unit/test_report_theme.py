"""The palette, computed: told apart by colour-blind readers, seen on both panels."""

import itertools

import numpy as np
import pytest

from asyn2f.report import theme

# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of
# color vision deficiency" (2009), severity 1.0; they act on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
# sRGB to CIE XYZ, white point D65 (IEC 61966-2-1).
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour: str) -> np.ndarray:
    """Linear RGB, f64 [3], of #RRGGBB."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b*, f64 [3], of linear RGB."""
    t = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(axis=1)
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """CIEDE2000 of two colours in L*a*b* (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25.0**7))
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (
        np.degrees(np.arctan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2))
    )
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    chord = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    hue = (h1 + turn / 2) % 360 if c1 * c2 else h1 + h2
    t = (
        1
        - 0.17 * np.cos(np.radians(hue - 30))
        + 0.24 * np.cos(np.radians(2 * hue))
        + 0.32 * np.cos(np.radians(3 * hue + 6))
        - 0.20 * np.cos(np.radians(4 * hue - 63))
    )
    spread = 30 * np.exp(-(((hue - 275) / 25) ** 2))
    rotation = -np.sin(np.radians(2 * spread)) * 2
    rotation *= np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    d_light = (l2 - l1) / (
        1 + 0.015 * (light - 50) ** 2 / np.hypot(20**0.5, light - 50)
    )
    d_chroma = (c2 - c1) / (1 + 0.045 * chroma)
    d_hue = chord / (1 + 0.015 * chroma * t)
    return float(
        np.sqrt(d_light**2 + d_chroma**2 + d_hue**2 + rotation * d_chroma * d_hue)
    )


def seen_apart(one: str, other: str, vision: str) -> float:
    return distance(*(lab(VISION[vision] @ linear(each)) for each in (one, other)))


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21 (WCAG 2.1)."""
    high, low = sorted(float(XYZ[1] @ linear(each)) for each in (one, other))[::-1]
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [  # Sharma, Wu and Dalal, table 1, pairs 1, 4, 7, 17, 19 and 24
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((50, 2.5, 0), (56, -27, -3), 31.9030),
        ((50, 2.5, 0), (50, 3.2592, 0.3350), 1.0000),
    ],
)
def test_the_distance_is_that_of_the_published_table(one, other, expected):
    assert distance(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-4)


def test_contrast_of_black_and_white_is_21():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21.0)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("side", ["light", "dark"])
def test_ten_colours_are_told_apart_however_one_sees(vision, side):
    """A difference that is just noticed is one of 1 to 2."""
    colours = [getattr(hue, side) for hue in theme.PALETTE]
    assert len(colours) == 10
    for one, other in itertools.combinations(colours, 2):
        assert seen_apart(one, other, vision) > 9.5


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("side", ["light", "dark"])
def test_colours_that_share_a_dash_are_far_apart(vision, side):
    colours = [getattr(hue, side) for hue in theme.PALETTE]
    for place in range(5):
        assert theme.dash(place) == theme.dash(place + 5)
        assert seen_apart(colours[place], colours[place + 5], vision) > 16


@pytest.mark.parametrize("side", ["light", "dark"])
def test_every_colour_is_seen_on_its_panel(side):
    panel = getattr(theme.PANEL, side)
    drawn = [getattr(hue, side) for hue in theme.PALETTE]
    for colour in (*drawn, theme.ACCENT, theme.BEST, theme.GREY):
        assert contrast(colour, panel) >= 3


def test_a_second_channel_tells_ten_methods_and_fifty_workers_apart():
    assert len({theme.symbol(place) for place in range(10)}) == 10
    looks = [(theme.colour(place), theme.dash(place)) for place in range(50)]
    assert len(set(looks)) == 50
    areas = [(theme.colour(place), theme.pattern(place)) for place in range(60)]
    assert len(set(areas)) == 60


@pytest.mark.parametrize("vision", VISION)
def test_neighbouring_bins_of_staleness_are_told_apart(vision):
    colours = [colour for *_, colour in theme.STALENESS]
    for one, other in itertools.pairwise(colours):
        assert seen_apart(one, other, vision) > 8
