"""Fitting all sites at once by gradient descent: the objectives, what is trained, the loop, and runs that resume."""
