"""Typed results shared by many rooms: judgements, bootstrap intervals, the table of results."""
