"""Answers to the closing questions of notebook 00, which has no exercises."""

from __future__ import annotations

from nlora_lab.course.exercises import Question

QUESTIONS: tuple[Question, ...] = (
    Question(
        "0.Q1",
        "Adam's first step moves every trained number by about the rate. In LoRA, B moves, and what W feels is\n"
        "that move times the small entries of A. In NLoRA the move of B is multiplied by N₀ A₀, and N₀ is the\n"
        "inverse of a nearly singular block, so it is very large. Notebook 4 measures it: at 2e-4, LoRA moves W\n"
        "by less than a thousandth of its norm, NLoRA by half.",
    ),
    Question(
        "0.Q2",
        "N adds nothing that the product can express, because B N is just another B. It changes the way there:\n"
        "SLoRA starts as LoRA with A' = N A, which is smaller. N can also be trained alone, with r² numbers.\n"
        "Whether that helps has to be measured: notebooks 4 to 6 do.",
    ),
    Question(
        "0.Q3",
        "Nobody says so. The order of the neurons is arbitrary. Notebook 2 shuffles them: the network stays the\n"
        "same, and the error of NLoRA's start changes from 2 to 250. So its start depends on a numbering that\n"
        "means nothing.",
    ),
)
