"""All kinds of grids, by their names in JSON."""

from quantlab.quant.dynamic import DynamicGrid
from quantlab.quant.grid import AffineGrid, FloatGrid, Grid
from quantlab.quant.log2 import Log2Grid

GRIDS: dict[str, type[Grid]] = {grid.kind: grid for grid in (AffineGrid, DynamicGrid, FloatGrid, Log2Grid)}
