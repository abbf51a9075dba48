"""nlora_lab: understand low-rank fine-tuning by touching it.

``import nlora_lab as nl`` is quick: torch, transformers, plotly and the rest load when a name that
needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from nlora_lab.errors import InputError, ModelError

if TYPE_CHECKING:
    from nlora_lab.adapters import save_as_lora
    from nlora_lab.choosing import at_best, at_each_rate, at_rate, best_rates
    from nlora_lab.comparing import compare, costs, learning, pareto
    from nlora_lab.config import RunConfig
    from nlora_lab.curvature import Curvature, curvature_of, curvature_table, rate_predictors
    from nlora_lab.eigenvalues import Eigenvalue, largest_eigenvalue
    from nlora_lab.estimates import Estimate, check_fit, estimate
    from nlora_lab.evaluation import Answer, answers, measure
    from nlora_lab.examples import landscape, with_spectrum
    from nlora_lab.exercises import WrongAnswer, check, exercise, solution
    from nlora_lab.exports import save_adapter, save_merged, tuned_model
    from nlora_lab.health import doctor
    from nlora_lab.inside import InsideRecorder
    from nlora_lab.labs import FineTuneLab, MemoryLab, NystromLab, SpectrumLab, SvdLab
    from nlora_lab.lowrank import (
        LowRank,
        error_curve,
        generalized_nystrom,
        nystrom,
        nystrom_psd,
        randomized_svd,
        relative_error,
        singular_values,
        truncated_svd,
    )
    from nlora_lab.measures import (
        effective_rank,
        marchenko_pastur,
        marchenko_pastur_values,
        power_law,
        stable_rank,
    )
    from nlora_lab.measuring import measure_saved
    from nlora_lab.meters import first_step, step0_meter
    from nlora_lab.methods import METHODS, Method, attach, parameter_table, variant
    from nlora_lab.models import load_model, revision_of
    from nlora_lab.plots import chart, heat_table, intervals, method_bars, method_scatter, valleys
    from nlora_lab.racing import race
    from nlora_lab.real_tasks import few_shot
    from nlora_lab.recipes import Recipe, recipes
    from nlora_lab.records import Run, table
    from nlora_lab.spectra import scan, spectrum
    from nlora_lab.store import RunStore, gather
    from nlora_lab.sweeps import sweep
    from nlora_lab.symmetry import permute_heads, permute_neurons
    from nlora_lab.tables import save_table
    from nlora_lab.tasks import Task, load_task
    from nlora_lab.tokens import Tokens, tokens_of
    from nlora_lab.tracking import track
    from nlora_lab.training import fine_tune

__version__ = version("nlora-lab")

_HOME = {
    "Answer": "evaluation",
    "Curvature": "curvature",
    "Eigenvalue": "eigenvalues",
    "Estimate": "estimates",
    "FineTuneLab": "labs",
    "InsideRecorder": "inside",
    "LowRank": "lowrank",
    "METHODS": "methods",
    "MemoryLab": "labs",
    "Method": "methods",
    "NystromLab": "labs",
    "Recipe": "recipes",
    "Run": "records",
    "RunConfig": "config",
    "RunStore": "store",
    "SpectrumLab": "labs",
    "SvdLab": "labs",
    "Task": "tasks",
    "Tokens": "tokens",
    "WrongAnswer": "exercises",
    "answers": "evaluation",
    "at_best": "choosing",
    "at_each_rate": "choosing",
    "at_rate": "choosing",
    "attach": "methods",
    "best_rates": "choosing",
    "chart": "plots",
    "check": "exercises",
    "check_fit": "estimates",
    "compare": "comparing",
    "costs": "comparing",
    "curvature_of": "curvature",
    "curvature_table": "curvature",
    "doctor": "health",
    "effective_rank": "measures",
    "error_curve": "lowrank",
    "estimate": "estimates",
    "exercise": "exercises",
    "few_shot": "real_tasks",
    "fine_tune": "training",
    "first_step": "meters",
    "gather": "store",
    "generalized_nystrom": "lowrank",
    "heat_table": "plots",
    "intervals": "plots",
    "landscape": "examples",
    "largest_eigenvalue": "eigenvalues",
    "learning": "comparing",
    "load_model": "models",
    "load_task": "tasks",
    "marchenko_pastur": "measures",
    "marchenko_pastur_values": "measures",
    "measure": "evaluation",
    "measure_saved": "measuring",
    "method_bars": "plots",
    "method_scatter": "plots",
    "nystrom": "lowrank",
    "nystrom_psd": "lowrank",
    "parameter_table": "methods",
    "pareto": "comparing",
    "permute_heads": "symmetry",
    "permute_neurons": "symmetry",
    "power_law": "measures",
    "race": "racing",
    "randomized_svd": "lowrank",
    "rate_predictors": "curvature",
    "recipes": "recipes",
    "relative_error": "lowrank",
    "revision_of": "models",
    "save_adapter": "exports",
    "save_as_lora": "adapters",
    "save_merged": "exports",
    "save_table": "tables",
    "scan": "spectra",
    "singular_values": "lowrank",
    "solution": "exercises",
    "spectrum": "spectra",
    "stable_rank": "measures",
    "step0_meter": "meters",
    "sweep": "sweeps",
    "table": "records",
    "tokens_of": "tokens",
    "track": "tracking",
    "truncated_svd": "lowrank",
    "tuned_model": "exports",
    "valleys": "plots",
    "variant": "methods",
    "with_spectrum": "examples",
}

__all__ = [
    "METHODS",
    "Answer",
    "Curvature",
    "Eigenvalue",
    "Estimate",
    "FineTuneLab",
    "InputError",
    "InsideRecorder",
    "LowRank",
    "MemoryLab",
    "Method",
    "ModelError",
    "NystromLab",
    "Recipe",
    "Run",
    "RunConfig",
    "RunStore",
    "SpectrumLab",
    "SvdLab",
    "Task",
    "Tokens",
    "WrongAnswer",
    "answers",
    "at_best",
    "at_each_rate",
    "at_rate",
    "attach",
    "best_rates",
    "chart",
    "check",
    "check_fit",
    "compare",
    "costs",
    "curvature_of",
    "curvature_table",
    "doctor",
    "effective_rank",
    "error_curve",
    "estimate",
    "exercise",
    "few_shot",
    "fine_tune",
    "first_step",
    "gather",
    "generalized_nystrom",
    "heat_table",
    "intervals",
    "landscape",
    "largest_eigenvalue",
    "learning",
    "load_model",
    "load_task",
    "marchenko_pastur",
    "marchenko_pastur_values",
    "measure",
    "measure_saved",
    "method_bars",
    "method_scatter",
    "nystrom",
    "nystrom_psd",
    "parameter_table",
    "pareto",
    "permute_heads",
    "permute_neurons",
    "power_law",
    "race",
    "randomized_svd",
    "rate_predictors",
    "recipes",
    "relative_error",
    "revision_of",
    "save_adapter",
    "save_as_lora",
    "save_merged",
    "save_table",
    "scan",
    "singular_values",
    "solution",
    "spectrum",
    "stable_rank",
    "step0_meter",
    "sweep",
    "table",
    "tokens_of",
    "track",
    "truncated_svd",
    "tuned_model",
    "valleys",
    "variant",
    "with_spectrum",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nlora_lab' has no attribute {name!r}")
    value = getattr(import_module(f"nlora_lab.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
