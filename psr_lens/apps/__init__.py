"""What a person starts: the command line, the pipeline behind `psr-lens run`, the demo and the benchmark."""
