"""Typed results that many rooms hand on: judgements, the result table, bootstrap intervals."""
