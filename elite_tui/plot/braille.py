"""Draws braille dots on a grid, two across and four down per character cell (Unicode U+2800 to U+28FF)."""

from __future__ import annotations

# Bit of the dot at [row][column] inside a cell, from the Unicode block's definition.
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

DOTS_ACROSS = 2
DOTS_DOWN = 4


class BrailleCanvas:
    """Dots on `width` × `height` character cells. Dot (0, 0) is at the top left; dots outside are ignored."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self._cells = [[0] * width for _ in range(height)]

    def dot(self, x: int, y: int) -> None:
        """Sets one dot."""
        column, row = x // DOTS_ACROSS, y // DOTS_DOWN
        if 0 <= column < self.width and 0 <= row < self.height:
            self._cells[row][column] |= _BITS[y % DOTS_DOWN][x % DOTS_ACROSS]

    def line(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """Sets the dots between two points, both inclusive (Bresenham)."""
        dx, dy = abs(x1 - x0), -abs(y1 - y0)
        step_x, step_y = (1 if x0 < x1 else -1), (1 if y0 < y1 else -1)
        error = dx + dy
        while True:
            self.dot(x0, y0)
            if (x0, y0) == (x1, y1):
                return
            doubled = 2 * error
            if doubled >= dy:
                error += dy
                x0 += step_x
            if doubled <= dx:
                error += dx
                y0 += step_y

    def rows(self) -> list[str]:
        """Returns the cells as text, one string per row. An empty cell is a space, so that markers show there."""
        return ["".join(chr(0x2800 + bits) if bits else " " for bits in row) for row in self._cells]
