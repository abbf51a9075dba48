from .measures import block_condition as block_condition
from .measures import effective_rank as effective_rank
from .measures import marchenko_pastur as marchenko_pastur
from .measures import marchenko_pastur_values as marchenko_pastur_values
from .measures import power_law as power_law
from .measures import stable_rank as stable_rank
from .scanning import scan as scan
from .scanning import spectrum as spectrum
