"""How good a method is: comparison, faithfulness, scores, strengths at a target coherence, side effects, robustness."""
