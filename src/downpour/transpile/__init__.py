"""Paddle's transpiler over a plan: who sends which section of a variable where, op by op."""
