from .fine_tuning import FineTuneLab as FineTuneLab
from .memory import MemoryLab as MemoryLab
from .nystrom import EliminationLab as EliminationLab
from .nystrom import NystromLab as NystromLab
from .spectrum import SpectrumLab as SpectrumLab
from .svd import SvdLab as SvdLab
