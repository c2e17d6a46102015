"""Finite Markov decision processes solved exactly (`exact`) and learned by steps (`learning`)."""

from jrl.tabular.exact import (
    Evaluation,
    Solution,
    action_values,
    deterministic,
    evaluate,
    evaluate_iteratively,
    finite_horizon_values,
    next_distribution,
    occupancy,
    policy_iteration,
    policy_transition,
    state_distributions,
    value_iteration,
)
from jrl.tabular.learning import Hyper, Learned, epsilon_greedy, q_learning, sarsa, td0

__all__ = [
    "Evaluation",
    "Hyper",
    "Learned",
    "Solution",
    "action_values",
    "deterministic",
    "epsilon_greedy",
    "evaluate",
    "evaluate_iteratively",
    "finite_horizon_values",
    "next_distribution",
    "occupancy",
    "policy_iteration",
    "policy_transition",
    "q_learning",
    "sarsa",
    "state_distributions",
    "td0",
    "value_iteration",
]
