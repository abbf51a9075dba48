from .checking import check as check
from .checking import exercise as exercise
from .checking import solution as solution
