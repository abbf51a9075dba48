"""Reading the final answer from a text, in the form in which each task writes it.

This module does not import torch, so it loads at once.
"""

from __future__ import annotations

import re
from decimal import Decimal

FINAL_NUMBER = re.compile(r"The answer is (-?\d+)\.")
MARKED_ANSWER = re.compile(
    r"(?:####|[Tt]he (?:final )?answer is:?)[ \t]*([^\n]+?)[ \t]*(?=####|[Tt]he (?:final )?answer is|$)", re.MULTILINE
)
LATEX_WRAPPER = re.compile(r"\\(?:boxed|text|mathrm|mathbf)\{((?:[^{}]|\{[^{}]*\})*)\}")
LATEX_SPACES = {r"\,": " ", r"\ ": " ", r"\!": "", "{,}": ","}
CURRENCY = "$€£¥￥元円원¢₹₽₩₺₫₪₱₦฿"
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9}  # as powers of ten
END = r"[\s.…?;:]*$"
NUMBER = re.compile(
    # *+ gives nothing back: a long row of such signs would take its length to the third power
    rf"[\s*_`\"'(\[{{=≈~+\\]*+(?:(?:USD|EUR|GBP|INR|CHF|CAD|AUD|JPY|CNY|Rs\.?|US|AU|CA|NZ|HK)(?=[\s{CURRENCY}])"
    rf"|[ACRS](?=\\?\$))?[\s*\\{CURRENCY}]*+(?P<sign>-?)[\s\\{CURRENCY}]*+"
    # digits in groups of three, with spaces or apostrophes between them, or with commas (in India also groups of two)
    r"(?P<digits>\d{1,3}(?:[ \u00a0\u2009\u202f'’]\d{3})+(?!\d)(?:\.\d+)?"
    r"|(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?!,?\d)(?:\.\d+)?|\.\d+),*+"
    rf"(?P<scale>[ ](?:{'|'.join(SCALES)})s?\b)?"
    # then the end, perhaps with a remark in brackets; or a unit: a word, or a letter that is not the x of a formula
    rf"(?=[\s.…*_`\"')\]}}\\{CURRENCY}?;:]*+(?:\([^()]*\))?{END}"
    rf"|[*_`\"')\]}}]*(?:\s*\\?%|\.?\s+[A-Za-z]{{2,}}|[A-Za-z]{{2,}}{END}"
    rf"|\s+[cdghJlLmNstVW](?:[²³]|/[a-z]+)?{END}|(?:[ghLmsVW][²³]?|m/s){END}|\s*(?:°[CF]?|[℃℉]){END}"
    rf"|\s*/\s*[A-Za-z]{{2,}}{END}))"
)
# Beside a number, in the same sentence, these make another number of it. "One" and "times" do not: "18 in one day".
OTHER_NUMBER = re.compile(
    r"(?<![\w^{])\.?\d|[¼-¾⅐-⅞]|\\[a-z]*frac|(?<![a-z])(?:(?:hundred|thousand|(?:m|b|tr)illion|dozen|lakh|crore)s?"
    r"|mil|mn|bn|grand|half|halves|quarters?|thirds|tens|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths"
    r"|zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|and (?:one|an?)|pi|sqrt|plus|minus|divided|multiplied|squared|cubed)"
    r"(?![a-z])|^\W*(?:third|tenth|(?:four|fif|six|seven|eigh|nin|hundred|thousand)th)\b",
    re.IGNORECASE,
)
CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
# 5! is a product. After more digits, a decimal or a word, the sign at the end is only emphasis.
EMPHASIS = re.compile(r"(?:(?<=\d\d)|(?<=[.,]\d)|(?<=[A-Za-z*_`\"]))!++(?=[\s*_`\"')\]}]*$)")
REMARK = re.compile(r"(?:^|(?<=\s))\([^()]*\)")
SENTENCE_END = re.compile(r"^[*_`\"')\]}]*\.\s|[.!?][*_`\"')\]}]*\s+(?=[^\sa-z\d])|\s(?:because|since)\s")
NEXT_QUESTION = "\nQuestion:"


def final_number(text: str) -> str | None:
    """Read N from the first "The answer is N." of a text.

    Args:
        text: the answer of a model to a generated task.

    Returns:
        The digits of N as they stand ("012" stays "012"), or ``None`` if the sentence does not occur.
    """
    match = FINAL_NUMBER.search(text)
    return match.group(1) if match else None


def marked_answer(text: str) -> str | None:
    """Read the last "#### N" or "The answer is: N", as GSM8K and MetaMathQA write it.

    Base models often invent another "Question:" after their answer. Only the text before it counts.

    Args:
        text: a worked answer.

    Returns:
        A number in one form (see ``plain_number``): "$1,200.0" becomes "1200". Other answers, such as the formulas of
        MetaMathQA, are returned unchanged. ``None`` if the text has neither mark.
    """
    matches = MARKED_ANSWER.findall(text.split(NEXT_QUESTION)[0])
    if not matches:
        return None
    answer = re.sub("[−–—](?=[ ]?[$€£¥.0-9])", "-", matches[-1])
    while LATEX_WRAPPER.search(answer):
        answer = LATEX_WRAPPER.sub(r"\1", answer)
    for written, meant in LATEX_SPACES.items():
        answer = answer.replace(written, meant)
    answer = answer.strip()
    return plain_number(answer) or answer.removesuffix(".").strip() or None


def plain_number(text: str) -> str | None:
    """Read the number that a text begins with, without "$", "," and superfluous zeros.

    Args:
        text: for example "-$1,200.50 each", "**5** million" or "+18°C".

    Returns:
        The number in plain digits, here "-1200.5". ``None`` if the text does not begin with a number, or if it is a
        longer formula or more than one number: "x", "3x+2", "1/2", "18 to 20", "2 dozen", "5 ft 6 in".
    """
    text = EMPHASIS.sub("", INVISIBLE.sub("", text))
    text = re.sub(r"^\s*<([^<>]*)>", r"\1", text)
    match = NUMBER.match(text)
    if match is None or _means_another_number(match[0], text[match.end() :]):
        return None
    value = Decimal(re.sub(r"[^\d.]", "", match["digits"]))
    digits = f"{value.scaleb(SCALES.get((match['scale'] or '').strip().removesuffix('s'), 0)):f}"
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    digits = digits.lstrip("0") or "0"
    digits = f"0{digits}" if digits.startswith(".") else digits
    return digits if digits == "0" else match["sign"] + digits


def _means_another_number(number: str, rest: str) -> bool:
    """Whether the sentence goes on in a way that changes its number. Then it is better not read than read as another.

    Remarks in brackets do not count.
    """
    if re.search(rf"[{CURRENCY}]", number) and re.match(r"\s*[mt]\b", rest):
        return True  # "$5m" is not 5 metres
    if re.search(r"(?<!\d)\d+ [1-9]\d\d$", number) and re.match(r"\s+[A-Za-z]*[A-Za-rt-z]\s+[A-Za-z]+s\b", rest):
        return True  # "5 100 gram bags" are 5 bags
    return OTHER_NUMBER.search(SENTENCE_END.split(REMARK.sub("", rest), maxsplit=1)[0]) is not None


def full_answer(text: str) -> str | None:
    """Return the complete text without surrounding white space, or ``None`` if nothing is left."""
    return text.strip() or None


def without_notes(text: str) -> str:
    """Remove the calculator notes of GSM8K: "48/2 = <<48/2=24>>24" becomes "48/2 = 24"."""
    return CALCULATOR_NOTE.sub("", text)
