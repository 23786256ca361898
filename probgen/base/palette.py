"""Colours of everything that probgen draws, as hexadecimal strings.

The colours of data stand out on white and on near-black alike (contrast of at least 3 : 1, as WCAG 2.2 asks of
graphics), so that a picture serves a light and a dark page. The others are those of a light page.
"""

from __future__ import annotations

__all__ = ["ACCENT", "BORDER", "HALO", "INK", "LINE", "PAPER", "PLATE", "QUIET", "SERIES", "SHADE"]

INK = "#1f2d3d"
"""Names, outlines."""
QUIET = "#66788a"
"""Captions, ticks."""
LINE = "#51616f"
"""Arrows."""
PAPER = "#ffffff"
SHADE = "#cfdeea"
"""What is observed."""
PLATE = "#7c93a8"
BORDER = "#9fb1c1"
HALO = "#f4f6f8"
"""Around labels that cross a line."""
SERIES = ("#2686a9", "#d0742a", "#5b8c5a", "#ab6d95", "#757bc4", "#a08c1f", "#7a7a7a", "#c15a5f")
"""Chains, groups, results that stand side by side."""
ACCENT = "#d1410c"
"""What to look at: divergences, observations, values beyond a limit."""
