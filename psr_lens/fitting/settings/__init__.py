"""What is set for a fit: a class for each solver, gradient descent, and what all settings have in common."""
