from .fine_tuning import FineTuneLab as FineTuneLab
from .matrices import EliminationLab as EliminationLab
from .matrices import SvdLab as SvdLab
from .memory import MemoryLab as MemoryLab
from .nystrom import NystromLab as NystromLab
from .spectrum import SpectrumLab as SpectrumLab
