"""Named settings of complete runs: the paper's, and smaller ones for a free card or a laptop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from nlora_lab.core.formatting import format_rate
from nlora_lab.core.validation import check_choice
from nlora_lab.estimates.requirements import Estimate, estimate
from nlora_lab.runs.config import SHARED_RATE, RunConfig


@dataclass(frozen=True)
class Recipe:
    """Settings under a name. A method is added to make a run: ``nl.RECIPES["laptop"].config("nlora")``.

    Attributes:
        name: what the recipe is called.
        title: what it is, in one line.
        source: where its settings come from.
        note: what the source leaves open, and what was chosen here.
        base: fields of ``RunConfig`` that differ from its defaults.
        rates: the learning rate of each method that has one of its own.
        rate: the learning rate of all other methods.
        evaluation: how to measure the result, beyond what a run does by itself: ``task``, ``rows``, ``shots``.
        architecture: the fields of the model's config, so that an estimate does not need the hub, or ``None``.
    """

    name: str
    title: str
    source: str
    note: str
    base: Mapping[str, Any]
    rates: Mapping[str, float] = field(default_factory=dict)
    rate: float = SHARED_RATE
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("base", "rates", "evaluation", "architecture"):
            if (settings := getattr(self, name)) is not None:
                object.__setattr__(self, name, MappingProxyType(dict(settings)))

    def config(self, method: str = "nlora", **changes: Any) -> RunConfig:
        """Make the config of one run.

        Args:
            method: the method of the run.
            changes: fields of ``RunConfig`` that differ from the recipe.

        Returns:
            The config. Its learning rate is that of the method in ``rates``, or ``rate``.

        Raises:
            InputError: ``RunConfig`` has no such field, or a value is not allowed.
        """
        known = [f.name for f in fields(RunConfig)]
        for name in changes:
            check_choice("field", name, known)
        return RunConfig(**{"lr": self.rates.get(method, self.rate), **self.base, "method": method, **changes})

    def configs(self, methods: Iterable[str] = ("lora", "slora", "nlora"), **changes: Any) -> list[RunConfig]:
        """Make the configs of several methods, for ``nl.race`` or ``nl.sweep``.

        Args:
            methods: the methods, each at its own learning rate.
            changes: fields of ``RunConfig`` that differ from the recipe.

        Returns:
            One config per method, in their order.

        Raises:
            InputError: ``RunConfig`` has no such field, or a value is not allowed.
        """
        return [self.config(method, **changes) for method in methods]

    def estimate(self, method: str = "nlora", device: str | None = None, **changes: Any) -> Estimate:
        """Estimate what a run needs in memory and time, without asking the hub.

        Args:
            method: the method of the run.
            device: a device here, or a card such as "T4". See ``nl.estimate``.
            changes: fields of ``RunConfig`` that differ from the recipe.

        Returns:
            The estimate.

        Raises:
            InputError: the device is unknown, or a field of ``RunConfig`` has a value that is not allowed.
        """
        cfg = self.config(method, **changes)
        return estimate(cfg, device, config=self.model_config(cfg))

    def model_config(self, cfg: RunConfig) -> Any:
        """Make the transformers config of the recipe's model.

        Args:
            cfg: a run of the recipe, perhaps with another model.

        Returns:
            The config, or ``None`` where ``cfg`` has another model or the recipe holds no architecture.
        """
        if self.architecture is None or cfg.model != self.base["model"]:
            return None
        from transformers import AutoConfig

        return AutoConfig.for_model(**self.architecture)

    def __repr__(self) -> str:
        rates = [f"{method} {format_rate(rate)}" for method, rate in self.rates.items()]
        settings = {**self.base, "lr": ", ".join([*rates, f"others {format_rate(self.rate)}"])}
        settings |= {f"evaluation {key}": value for key, value in self.evaluation.items()}
        rows = [("source", self.source), ("note", self.note)]
        rows += [(key, f"{value:g}" if isinstance(value, float) else str(value)) for key, value in settings.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join([f"{self.name}: {self.title}", *(f"  {name:<{width}}  {text}" for name, text in rows)])

    __str__ = __repr__


class Recipes(Mapping[str, Recipe]):
    """The recipes by name, read-only. An unknown name raises ``InputError`` with the known ones."""

    def __init__(self, recipes: Iterable[Recipe]) -> None:
        self._by_name = {recipe.name: recipe for recipe in recipes}

    def __getitem__(self, name: str) -> Recipe:
        check_choice("recipe", name, self._by_name)
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name  # that of Mapping expects a KeyError from __getitem__

    def get(self, name: str, default: Any = None) -> Any:
        """Return the recipe of this name, or ``default``."""
        return self._by_name.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        width = max(map(len, self._by_name))
        return "\n".join(f"{name:<{width}}  {recipe.title}" for name, recipe in self._by_name.items())


LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
SMOL = {
    "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "vocab_size": 30522, "max_position_embeddings": 512,
}  # fmt: skip

PAPER = "Guo, Chang and Wu, NLoRA (arXiv 2502.14482), and the scripts its authors released (TracyGuo2001/NLoRA)"
OPEN_QUESTIONS = (
    "Neither the paper nor the scripts say the precision (no flag is given, and bf16 is chosen here), the seeds, or "
    "the order of the rows. The released PiSSA script has 2e-5. The prompts are those of this package, not of the "
    "release. clip_norm is the default of transformers' Trainer, which the scripts do not change."
)
PAPER_ROWS = 100_000  # of MetaMathQA, each once


def _paper_recipe(name: str, batch: int, reading: str) -> Recipe:
    return Recipe(
        name,
        f"the paper's GSM8K run: Llama-2-7B on 100,000 rows of MetaMathQA, batches of {batch}",
        PAPER,
        f"{reading} {OPEN_QUESTIONS}",
        {
            "task": "metamath", "model": "meta-llama/Llama-2-7b-hf", "rank": 128, "alpha": 128,
            "train_rows": PAPER_ROWS, "steps": -(-PAPER_ROWS // batch), "batch_size": batch, "accumulation": batch,
            "warmup": 0.03, "weight_decay": 0.0, "dropout": 0.0, "clip_norm": 1.0, "max_length": 512,
            "precision": "bf16",
        },
        {"pissa": 2e-5},
        evaluation={"task": "gsm8k", "rows": 1319, "shots": 0},
        architecture=LLAMA,
    )  # fmt: skip


BEST_RECORDED_RATES = {
    "full": 2e-3, "lora": 0.0141, "rslora": 7.07e-3, "dora": 2e-2, "pissa": 7.07e-3, "olora": 5e-3, "lora-xs": 5e-2,
    "slora": 1e-2, "nlora": 2e-4, "nlora-pivoted": 5e-3, "nlora-core": 2e-2, "nlora-balanced": 5e-3,
    "nlora-released": 2e-2, "inttune": 2e-1,
}  # fmt: skip
"""The best rate of each method on word problems at rank 8, as ``nl.best_rates()`` finds it. A test compares the two."""

COLAB_RATES = {"lora": 1e-3, "slora": 5e-4, "nlora": SHARED_RATE}
COLAB_SOURCE = "sized by nl.estimate for a T4 (16 GB, no bf16 units)"
COLAB_NOTE = (
    "The rates are where a search can start, not a result. Those of LoRA and SLoRA are a fourteenth and a twentieth of "
    "the best recorded rates of the embedded model (1.4e-2 and 1e-2), a guess at what a larger model can take. NLoRA "
    "and all other methods have the paper's 2e-4."
)
RECIPES: Mapping[str, Recipe] = Recipes(
    (
        _paper_recipe(
            "paper-gsm8k",
            128,
            "A comment in the scripts says that the batch is 128. Their own numbers (1 example × 4 accumulated × 4 "
            "cards) make 16. This recipe follows the comment, and paper-gsm8k-small-batch the numbers.",
        ),
        _paper_recipe(
            "paper-gsm8k-small-batch",
            16,
            "The numbers in the scripts (1 example × 4 accumulated × 4 cards) make batches of 16. Their comment says "
            "128, which is paper-gsm8k. With 16 there are eight times as many steps.",
        ),
        Recipe(
            "colab-gsm8k",
            "SmolLM2-135M on GSM8K, each method within minutes on a T4",
            COLAB_SOURCE,
            f"The model is too small to solve many problems, so compare losses too. {COLAB_NOTE}",
            {
                "task": "gsm8k", "model": "HuggingFaceTB/SmolLM2-135M", "rank": 8, "steps": 444, "batch_size": 16,
                "accumulation": 2, "max_length": 320, "test_rows": 200, "precision": "float32", "batching": "length",
            },
            COLAB_RATES,
            evaluation={"task": "gsm8k", "rows": 200, "shots": 0},
            architecture=SMOL,
        ),
        Recipe(
            "colab-sst2",
            "BERT-base on SST-2, with a classification head, on a T4",
            COLAB_SOURCE,
            f"GLUE's test labels are not public, so results are for the validation split. {COLAB_NOTE}",
            {
                "task": "sst2", "model": "google-bert/bert-base-uncased", "rank": 8, "steps": 500, "batch_size": 32,
                "max_length": 128, "precision": "float32",
            },
            COLAB_RATES,
            evaluation={"task": "sst2", "rows": 872, "shots": 0},
            architecture=BERT,
        ),
        Recipe(
            "laptop",
            "the embedded model on word problems, with the settings of the recorded runs",
            "the recorded runs that ship with this package: for each method the rate with the lowest median validation "
            "loss on word problems at rank 8 (nl.best_rates())",
            "Needs no network.",
            {"task": "word-problems", "model": "embedded", "rank": 8, "steps": 250, "batch_size": 16},
            BEST_RECORDED_RATES,
            evaluation={"task": "word-problems", "rows": 200, "shots": 0},
        ),
    )
)  # fmt: skip
"""Recipes by name: ``paper-gsm8k``, ``paper-gsm8k-small-batch``, ``colab-gsm8k``, ``colab-sst2``, ``laptop``."""
