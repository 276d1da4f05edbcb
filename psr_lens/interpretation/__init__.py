"""What directions mean, which parts of the model carry the instruction's effect, and tests of both by intervention."""
