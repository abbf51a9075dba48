from .engine import sweep as sweep
from .grid import coverage as coverage
from .grid import expand_grid as expand_grid
