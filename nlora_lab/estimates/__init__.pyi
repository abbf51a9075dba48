from .recipes import RECIPES as RECIPES
from .recipes import Recipe as Recipe
from .requirements import Estimate as Estimate
from .requirements import check_fit as check_fit
from .requirements import estimate as estimate
from .throughput import CARDS as CARDS
