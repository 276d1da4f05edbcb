"""What directions mean, which parts of the model the instruction acts through, and checks by intervention."""
