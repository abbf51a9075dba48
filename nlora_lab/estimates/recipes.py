"""Named settings of whole runs: the paper's, and smaller ones for a free card or a laptop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.runs.config import SHARED_RATE

if TYPE_CHECKING:
    from nlora_lab.estimates.requirements import Estimate
    from nlora_lab.runs.config import RunConfig


def _frozen(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(settings))


@dataclass(frozen=True)
class Recipe:
    """Settings under a name, to which a method is added: ``nl.recipes["laptop"].config("nlora")``.

    Attributes:
        name: what it is called. ``title``: what it is, in a line.
        source: where the settings come from.
        note: what is left open there, and what was chosen here.
        base: fields of :class:`nlora_lab.RunConfig`, as far as they differ from its defaults.
        rates: a learning rate a method; a method not named takes ``rate``.
        evaluation: how the result is to be measured, beyond what a run does by itself: ``task``, ``rows``, ``shots``.
        architecture: the fields of the model's config, so that it can be estimated without the hub.
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
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _frozen(getattr(self, name)))

    def config(self, method: str = "nlora", **changes: Any) -> RunConfig:
        """The run of ``method``; ``changes`` are fields of RunConfig that are to be otherwise.

        Raises :class:`nlora_lab.InputError` for a field that a run does not have, and for bad values.
        """
        from dataclasses import fields

        from nlora_lab.runs.config import RunConfig

        known = [f.name for f in fields(RunConfig)]
        for name in changes:
            check_choice("field", name, known)
        return RunConfig(**{"lr": self.rates.get(method, self.rate), **self.base, "method": method, **changes})

    def configs(self, methods: Iterable[str] = ("lora", "slora", "nlora"), **changes: Any) -> list[RunConfig]:
        """The runs of several methods, to race or sweep; rates are each method's own."""
        return [self.config(method, **changes) for method in methods]

    def estimate(self, method: str = "nlora", device: str | None = None, **changes: Any) -> Estimate:
        """What it takes in memory and time (:func:`nlora_lab.estimate`), for which the hub is not asked.

        ``device``: one that is here, or a named card such as "T4".
        """
        from nlora_lab.estimates.requirements import estimate

        cfg = self.config(method, **changes)
        return estimate(cfg, device, config=self.own_architecture(cfg))

    def own_architecture(self, cfg: RunConfig) -> Any:
        """The transformers config of the recipe's model, if ``cfg`` is still about that and it is kept here."""
        if self.architecture is None or cfg.model != self.base["model"]:
            return None
        from transformers import AutoConfig

        return AutoConfig.for_model(**self.architecture)

    def __repr__(self) -> str:
        settings = {**self.base, "lr": self.rates or self.rate}
        rows = [("source", self.source), ("note", self.note)]
        rows += [(key, _words(value)) for key, value in settings.items()]
        rows += [(f"evaluation {key}", _words(value)) for key, value in self.evaluation.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join([f"{self.name}: {self.title}", *(f"  {name:<{width}}  {value}" for name, value in rows)])

    __str__ = __repr__


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {rate:g}" for name, rate in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


class Recipes(Mapping[str, Recipe]):
    """The recipes by name, read-only; an unknown name raises :class:`nlora_lab.InputError`, which lists them."""

    def __init__(self, RECIPES: Iterable[Recipe]) -> None:
        self._by_name = {recipe.name: recipe for recipe in RECIPES}

    def __getitem__(self, name: str) -> Recipe:
        if not isinstance(name, str) or name not in self._by_name:
            raise InputError(f"recipe={name!r} is not known; choose one of: {', '.join(self._by_name)}")
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name  # Mapping's own asks __getitem__ for a KeyError

    def get(self, name: str, default: Any = None) -> Any:
        """The recipe, or ``default``."""
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
OPEN = (
    "Not said there: the precision (no flag is given; bf16 is chosen here), the seeds, and the order of the rows. "
    "The released PiSSA script has 2e-5. Prompts are this package's, not those of the release. clip_norm is the "
    "default of transformers' Trainer, which the scripts leave as it is."
)
ROWS = 100_000  # of MetaMathQA, once


def _paper(name: str, batch: int, reading: str, parts: int) -> Recipe:
    return Recipe(
        name,
        f"the paper's GSM8K run: Llama-2-7B on 100,000 rows of MetaMathQA, batches of {batch}",
        PAPER,
        f"{reading} {OPEN}",
        {
            "task": "metamath", "model": "meta-llama/Llama-2-7b-hf", "rank": 128, "alpha": 128, "train_rows": ROWS,
            "steps": -(-ROWS // batch), "batch_size": batch, "accumulation": parts, "warmup": 0.03,
            "weight_decay": 0.0, "dropout": 0.0, "clip_norm": 1.0, "max_length": 512, "precision": "bf16",
        },
        {"pissa": 2e-5},
        evaluation={"task": "gsm8k", "rows": 1319, "shots": 0},
        architecture=LLAMA,
    )  # fmt: skip


RATES_NOTE = (
    "The rates are a start for a search, not a result: LoRA's and SLoRA's are a sixteenth of those that the embedded "
    "model's sweep chose, a guess at what a larger model bears; NLoRA's and all others are the paper's 2e-4."
)
RECIPES: Mapping[str, Recipe] = Recipes(
    (
        _paper(
            "paper-gsm8k",
            128,
            "The scripts say of the batch, in a comment, that it is 128; their own numbers, 1 example × 4 accumulated "
            "× 4 cards, make 16. This is the comment's reading; paper-gsm8k-small-batch is the other.",
            128,
        ),
        _paper(
            "paper-gsm8k-small-batch",
            16,
            "The scripts' numbers, 1 example × 4 accumulated × 4 cards, make batches of 16; their comment says 128, "
            "which is paper-gsm8k. With 16 there are eight times as many steps.",
            16,
        ),
        Recipe(
            "colab-gsm8k",
            "SmolLM2-135M on GSM8K, each method within minutes on a T4",
            "sized by nlora_lab.estimate for a T4 (16 GB, no bf16 units)",
            f"Too small a model to get many problems right: compare losses too. {RATES_NOTE}",
            {
                "task": "gsm8k", "model": "HuggingFaceTB/SmolLM2-135M", "rank": 8, "steps": 444, "batch_size": 16,
                "accumulation": 2, "max_length": 320, "test_rows": 200, "precision": "float32", "batching": "length",
            },
            {"lora": 1e-3, "slora": 5e-4, "nlora": SHARED_RATE},
            evaluation={"task": "gsm8k", "rows": 200, "shots": 0},
            architecture=SMOL,
        ),
        Recipe(
            "colab-sst2",
            "BERT-base on SST-2, with a classification head, on a T4",
            "sized by nlora_lab.estimate for a T4 (16 GB, no bf16 units)",
            f"GLUE's test labels are not public: results are for the validation split. {RATES_NOTE}",
            {
                "task": "sst2", "model": "google-bert/bert-base-uncased", "rank": 8, "steps": 500, "batch_size": 32,
                "max_length": 128, "precision": "float32",
            },
            {"lora": 1e-3, "slora": 5e-4, "nlora": SHARED_RATE},
            evaluation={"task": "sst2", "rows": 872, "shots": 0},
            architecture=BERT,
        ),
        Recipe(
            "laptop",
            "the embedded model on word problems, as in the README's first table",
            "this package; a rate a method, chosen by validation loss (benchmarks/first_table.py)",
            "Needs no network. A method without a rate of its own takes the shared 2e-4.",
            {"task": "word-problems", "model": "embedded", "rank": 8, "steps": 250, "batch_size": 16},
            {"lora": 1.6e-2, "slora": 8e-3, "nlora": SHARED_RATE},
            evaluation={"task": "word-problems", "rows": 200, "shots": 0},
        ),
    )
)  # fmt: skip
"""Recipes by name: ``paper-gsm8k``, ``paper-gsm8k-small-batch``, ``colab-gsm8k``, ``colab-sst2``, ``laptop``."""
