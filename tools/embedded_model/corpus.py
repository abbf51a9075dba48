"""The pretraining text of the embedded model: short documents from a seeded grammar.

There are stories with people, places and things, and sums with one step in digits and in words. There is counting,
comparing and sorting, and there are questions about the sentences before them. The text teaches the *parts* of the
fine-tuning tasks: arithmetic, which number is larger, the words yes, no and maybe. It never shows the tasks themselves.
It has no problem with two dependent steps, and nothing about what follows from "more than 20".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from nlora_lab.tasks.vocabulary import (
    ANIMALS,
    COLOURS,
    COMPARATIVES,
    CONTAINERS,
    GAIN_VERBS,
    LOSS_VERBS,
    OPPOSITES,
    PLACES,
    THINGS,
    count,
    people,
    plural,
)

WEATHER = ("sunny", "rainy", "windy", "foggy", "snowy", "warm", "cool", "grey")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIMES = ("In the morning", "At noon", "In the evening", "At night", "Before lunch", "After school")
FEELINGS = ("happy", "sad", "tired", "proud", "angry", "hungry", "quiet", "glad", "cold", "brave")
MOVES = ("walks", "runs", "goes", "rides", "hurries", "comes")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_SUM = 75  # the largest sum in the text; the tasks stay at or below 60


def article(word: str) -> str:
    """Return ``a`` or ``an``, by the first letter of the word."""
    return "an" if word[0] in "aeiou" else "a"


def sum_fact(rng: Random) -> str:
    """Return one equation with small whole numbers: ``37+8=45``, ``45-8=37`` or ``6*7=42``."""
    kind = rng.random()
    if kind < 0.42:
        a, b = rng.randint(0, MAX_SUM - 15), rng.randint(0, 15)
        return f"{a}+{b}={a + b}"
    if kind < 0.84:
        a = rng.randint(0, MAX_SUM)
        b = rng.randint(0, min(a, 15))
        return f"{a}-{b}={a - b}"
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    if rng.random() < 0.3:
        a, b = 2, rng.randint(2, 32)
    return f"{a}*{b}={a * b}"


def arithmetic(rng: Random) -> str:
    """Return a line of independent sums."""
    return ". ".join(sum_fact(rng) for _ in range(rng.randint(3, 9))) + "."


def one_step(rng: Random) -> str:
    """Return a story problem with exactly one operation. The answer is an equation and often a sentence."""
    who, other = people(rng, 2)
    thing = rng.choice(THINGS)
    kind = rng.randrange(5)
    subject = who
    if kind == 0:
        a, b = rng.randint(1, 55), rng.randint(1, 12)
        text = f"{who.name} has {count(a, thing)}. {who.they.capitalize()} {rng.choice(GAIN_VERBS)} {b} more."
        fact, value = f"{a}+{b}={a + b}", a + b
    elif kind == 1:
        a = rng.randint(2, 60)
        b = rng.randint(1, min(a, 12))
        loss = rng.choice([*(f"{v} {b} of them" for v in LOSS_VERBS), f"gives {b} to {other.name}"])
        text = f"{who.name} has {count(a, thing)}. {who.they.capitalize()} {loss}."
        fact, value = f"{a}-{b}={a - b}", a - b
    elif kind == 2:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        text = f"{who.name} has {count(a, rng.choice(CONTAINERS))} with {count(b, thing)} in each."
        fact, value = f"{a}*{b}={a * b}", a * b
    elif kind == 3:
        a, b = rng.randint(1, 55), rng.randint(1, 12)
        text = f"{who.name} has {count(a, thing)}. {other.name} has {b} more than {who.name}."
        fact, value, subject = f"{a}+{b}={a + b}", a + b, other
    else:
        a = rng.randint(2, 30)
        text = f"{who.name} has {count(a, thing)}. {other.name} has twice as many."
        fact, value, subject = f"2*{a}={2 * a}", 2 * a, other
    question = f"Q: How many {plural(thing)} does {subject.name} have?"
    ending = rng.choice([f"{subject.name} has {count(value, thing)}.", f"So {subject.they} has {value}.", ""])
    return f"{text} {question} A: {fact}. {ending}".rstrip()


def counting(rng: Random) -> str:
    """Return a row of numbers that go up or down, or a count of the things in a row."""
    kind = rng.randrange(4)
    if kind == 0:
        start, step = rng.randint(0, 50), rng.randint(1, 3)
        return "Count on: " + ", ".join(str(start + step * i) for i in range(rng.randint(4, 9))) + "."
    if kind == 1:
        start = rng.randint(10, 60)
        return "Count back: " + ", ".join(str(start - i) for i in range(rng.randint(4, 9))) + "."
    if kind == 2:
        thing, n = rng.choice(THINGS), rng.randint(1, 9)
        return f"On the table: {' '.join([thing] * n)}. Q: How many {plural(thing)}? A: {n}."
    first, second = rng.sample(THINGS, 2)
    row = [first] * rng.randint(1, 5) + [second] * rng.randint(1, 5)
    rng.shuffle(row)
    return f"On the table: {' '.join(row)}. Q: How many {plural(first)}? A: {row.count(first)}."


def comparing(rng: Random) -> str:
    """Return a comparison (more, less, taller, older) as a statement, with its reverse, or as a question."""
    if rng.random() < 0.5:
        a, b = rng.sample(range(70), 2)
        more = max(a, b)
        return rng.choice(
            [
                f"{more} is more than {min(a, b)}.",
                f"Q: Is {a} more than {b}? A: {'yes' if a > b else 'no'}.",
                f"Q: Is {a} less than {b}? A: {'yes' if a < b else 'no'}.",
                f"Q: Which is more, {a} or {b}? A: The answer is {more}.",
            ]
        )
    who, other = people(rng, 2)
    up, down = rng.choice(COMPARATIVES)
    statement = f"{who.name} is {up} than {other.name}."
    return rng.choice(
        [
            f"{statement} So {other.name} is {down} than {who.name}.",
            f"{statement} Q: Who is {up}? A: {who.name}.",
            f"{statement} Q: Who is {down}? A: {other.name}.",
            f"{statement} Q: Is {other.name} {down}? A: yes.",
            f"{statement} Q: Is {other.name} {up}? A: no.",
        ]
    )


def ordering(rng: Random) -> str:
    """Return pairs of numbers, alone or in two sentences, with the word more, less or same for the first number."""
    lines = []
    for _ in range(rng.randint(2, 6)):
        a = rng.randint(1, 60)
        b = rng.choice([a, rng.randint(1, 60), max(1, a + rng.randint(-9, 9)), max(1, a + rng.randint(-9, 9))])
        verdict = "more" if a > b else "less" if a < b else "same"
        if rng.random() < 0.4:
            lines.append(f"{a} {b}: {verdict}.")
        else:
            (who, other), thing = people(rng, 2), rng.choice(THINGS)
            lines.append(f"{who.name} has {count(a, thing)}. {other.name} has {count(b, thing)}: {verdict}.")
    return " ".join(lines)


def sorting(rng: Random) -> str:
    """Return numbers, letters or words with their sorted order, or backwards."""
    kind = rng.randrange(4)
    if kind == 0:
        row = [str(n) for n in sorted(rng.sample(range(70), rng.randint(3, 6)))]
    elif kind == 1:
        row = sorted(rng.sample(LETTERS, rng.randint(3, 7)))
    else:
        row = sorted(rng.sample(THINGS + ANIMALS, rng.randint(3, 5)))
    mixed = rng.sample(row, len(row))
    if kind == 3:
        return f"Backwards: {' '.join(mixed)}: {' '.join(mixed[::-1])}."
    return f"Sort: {' '.join(mixed)}: {' '.join(row)}."


def facts(rng: Random) -> str:
    """Return a fact without a story: opposites, days, and what animals and things are."""
    kind = rng.randrange(5)
    if kind == 0:
        pair = rng.choice(OPPOSITES)
        a, b = pair if rng.random() < 0.5 else pair[::-1]
        return rng.choice([f"The opposite of {a} is {b}.", f"Q: What is the opposite of {a}? A: {b}."])
    if kind == 1:
        i = rng.randrange(7)
        return rng.choice([f"After {DAYS[i]} comes {DAYS[(i + 1) % 7]}.", f"Before {DAYS[i]} comes {DAYS[i - 1]}."])
    if kind == 2:
        word, group = rng.choice(
            [(rng.choice(ANIMALS), "animal"), (rng.choice(COLOURS), "colour"), (rng.choice(DAYS), "day")]
        )
        return f"Q: Is {word} {article(group)} {group}? A: yes."
    if kind == 3:
        return f"Q: Is {rng.choice(ANIMALS)} {article('colour')} colour? A: no."
    when = rng.choice(["tomorrow", f"on {rng.choice(DAYS)}"])
    what = rng.choice(["it rain", "it snow", f"{people(rng, 1)[0].name} come", f"the {rng.choice(ANIMALS)} sleep"])
    return f"Q: Will {what} {when}? A: maybe."


def add_questions(rng: Random, text: str, pairs: list[tuple[str, str]]) -> str:
    """Return ``text`` and, after it, one to three of the pairs of a question and its answer."""
    chosen = rng.sample(pairs, min(len(pairs), rng.randint(1, 3)))
    return text + "".join(f" Q: {question} A: {answer}." for question, answer in chosen)


def scene(rng: Random) -> str:
    """Return two to four facts about places or colours, then questions about them."""
    k = rng.randint(2, 4)
    pairs = []
    if rng.random() < 0.5:
        group, places = people(rng, k), rng.sample(PLACES, k)
        text = " ".join(f"{p.name} is in the {q}." for p, q in zip(group, places, strict=True))
        for person, place in zip(group, places, strict=True):
            pairs += [(f"Where is {person.name}?", f"in the {place}"), (f"Who is in the {place}?", person.name)]
    else:
        things, colours = rng.sample(THINGS, k), rng.sample(COLOURS, k)
        text = " ".join(f"The {t} is {c}." for t, c in zip(things, colours, strict=True))
        for thing, colour in zip(things, colours, strict=True):
            pairs += [(f"What colour is the {thing}?", colour), (f"What is {colour}?", f"the {thing}")]
    return add_questions(rng, text, pairs)


def owning(rng: Random) -> str:
    """Return who has how many of which thing, then questions that need one look-up."""
    k = rng.randint(2, 4)
    group, things = people(rng, k), rng.sample(THINGS, k)
    sentences, pairs = [], []
    for person, thing in zip(group, things, strict=True):
        n = rng.randint(1, 60)
        sentences.append(f"{person.name} has {count(n, thing)}.")
        pairs += [
            (f"Who has {plural(thing)}?", person.name),
            (f"What does {person.name} have?", count(n, thing)),
            (f"How many {plural(thing)} does {person.name} have?", str(n)),
        ]
    return add_questions(rng, " ".join(sentences), pairs)


def story(rng: Random) -> str:
    """Return a short story of five to eight lines about two people and what they do."""
    who, other = people(rng, 2)
    place, second_place = rng.sample(PLACES, 2)
    animal, thing, colour = rng.choice(ANIMALS), rng.choice(THINGS), rng.choice(COLOURS)
    size, opposite = rng.choice(OPPOSITES[:2] + OPPOSITES[10:12])
    feeling = rng.choice(FEELINGS)
    lines = [
        rng.choice(
            [
                f"It is a {rng.choice(WEATHER)} day.",
                f"On {rng.choice(DAYS)} {who.name} wakes up late.",
                f"{who.name} and {other.name} are friends.",
                f"{who.name} has a {colour} {animal}.",
            ]
        ),
        f"{rng.choice(TIMES)} {who.name} {rng.choice(MOVES)} to the {place}.",
    ]
    events = [
        f"{who.they.capitalize()} sees a {size} {animal} near the {second_place}.",
        f"The {animal} is {size}, but the {thing} is {opposite}.",
        f"{who.they.capitalize()} finds a {colour} {thing} and puts it in {who.their} bag.",
        f'"Look at my {thing}!" says {who.name}.',
        f"{other.name} wants the {thing} too.",
        f"Then it starts to rain and they run to the {second_place}.",
        f"{other.name} asks {who.them} for help, and {who.they} helps.",
        f'"Where is my {animal}?" asks {other.name}. "In the {second_place}," says {who.name}.',
        f"{who.name} gives {other.name} the {colour} {thing}.",
        f"They play a game with {count(rng.randint(2, 9), thing)}.",
        f"The {animal} eats {article(thing)} {thing} and sleeps.",
        f"{other.name} is {rng.choice(FEELINGS)} because the {animal} is gone.",
        f"They look in the {second_place}, but there is nothing there.",
        f"{who.their.capitalize()} mother calls from the {place}.",
    ]
    lines += rng.sample(events, rng.randint(2, 5))
    lines.append(
        rng.choice(
            [
                f"At the end of the day {who.name} is {feeling}.",
                f"{who.name} and {other.name} go home.",
                f'"{rng.choice(["Thank you", "Good night", "See you soon"])}," says {other.name}.',
                f"Now the {thing} is in the {second_place}.",
            ]
        )
    )
    return " ".join(lines)


def story_question(rng: Random) -> str:
    """Return three sentences in which a person moves once, and a question about the places afterwards."""
    who, other = people(rng, 2)
    first, second, third = rng.sample(PLACES, 3)
    thing = rng.choice(THINGS)
    text = (
        f"{who.name} is in the {first}. {other.name} is in the {third}. {who.name} {rng.choice(MOVES)} to the {second}."
    )
    question, answer = rng.choice(
        [
            (f"Where is {who.name} now?", f"in the {second}"),
            (f"Where is {other.name} now?", f"in the {third}"),
            (f"Is {who.name} in the {second}?", "yes"),
            (f"Is {who.name} in the {first}?", "no"),
            (f"Does {other.name} like the {thing}?", "maybe"),
        ]
    )
    return f"{text} Q: {question} A: {answer}."


KINDS: tuple[tuple[Callable[[Random], str], float], ...] = (
    (story, 0.16),
    (arithmetic, 0.21),
    (one_step, 0.20),
    (ordering, 0.15),
    (counting, 0.05),
    (comparing, 0.05),
    (sorting, 0.05),
    (facts, 0.03),
    (scene, 0.04),
    (owning, 0.02),
    (story_question, 0.03),
)  # relative shares of documents; the model must be sure of sums and comparisons, or the tasks would measure those


def documents(seed: int) -> Iterator[str]:
    """Yield documents without end. The same seed gives the same documents."""
    rng = Random(f"corpus-{seed}")
    makers, weights = [k for k, _ in KINDS], [w for _, w in KINDS]
    while True:
        yield rng.choices(makers, weights)[0](rng)
