"""Predictions: a guess is committed before the measurement is shown, and a class can pool its guesses."""
