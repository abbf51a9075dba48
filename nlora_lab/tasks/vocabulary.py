"""The words that the generated tasks and the pretraining text of the embedded model share.

There is one list per kind of word, so a task never uses a word that the embedded model has not met. The lists
determine the tokenizer: if you change one, the embedded model and every recorded figure change.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Person:
    """A first name with its pronouns.

    Attributes:
        name: the first name.
        they: the nominative pronoun, such as "she".
        them: the objective pronoun, such as "her".
        their: the possessive pronoun, such as "her".
    """

    name: str
    they: str
    them: str
    their: str


PEOPLE: tuple[Person, ...] = tuple(
    [Person(n, "she", "her", "her") for n in "Ana Cara Dora Eva Gina Ida Lena Mia Nora Pia Rosa Tia".split()]
    + [Person(n, "he", "him", "his") for n in "Ben Carl Dan Emil Finn Hugo Jon Leo Max Otto Paul Tom".split()]
)

THINGS: tuple[str, ...] = tuple(
    "apple pear plum nut egg cake shell stone coin stamp card book pen key cup ball kite marble "
    "button sticker flower leek lemon bean".split()
)
PLACES: tuple[str, ...] = tuple(
    "garden kitchen park school shop library forest farm market barn house tent field cellar".split()
)
ANIMALS: tuple[str, ...] = tuple("dog cat hen horse duck fox goat mouse bird frog rabbit cow".split())
COLOURS: tuple[str, ...] = tuple("red blue green yellow white black brown pink".split())
OPPOSITES: tuple[tuple[str, str], ...] = (
    ("big", "small"), ("hot", "cold"), ("tall", "short"), ("old", "young"), ("fast", "slow"),
    ("happy", "sad"), ("full", "empty"), ("wet", "dry"), ("loud", "quiet"), ("early", "late"),
    ("soft", "hard"), ("clean", "dirty"), ("open", "closed"), ("high", "low"), ("near", "far"),
)  # fmt: skip
COMPARATIVES: tuple[tuple[str, str], ...] = (
    ("taller", "shorter"), ("older", "younger"), ("faster", "slower"), ("stronger", "weaker"),
    ("louder", "quieter"), ("happier", "sadder"),
)  # fmt: skip
CONTAINERS: tuple[str, ...] = ("box", "bag", "basket", "jar")
GAIN_VERBS: tuple[str, ...] = ("finds", "buys", "gets", "picks", "wins")
LOSS_VERBS: tuple[str, ...] = ("loses", "sells", "gives away", "drops", "breaks")


def plural(noun: str) -> str:
    """Return the plural of a noun of this module: ``box`` → ``boxes``, ``apple`` → ``apples``."""
    return noun + ("es" if noun.endswith(("x", "s", "ch")) else "s")


def count(n: int, noun: str) -> str:
    """Return a number in digits and the noun in singular or plural: ``1 apple``, ``3 apples``."""
    return f"{n} {noun if n == 1 else plural(noun)}"


def people(rng: Random, k: int) -> list[Person]:
    """Draw ``k`` different people."""
    return rng.sample(PEOPLE, k)
