"""Finds the cheapest precisions that keep the answers: variables, scores, candidates, Optuna's study, the
answer."""
