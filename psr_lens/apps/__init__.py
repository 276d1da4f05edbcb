"""What users start: the command line, the pipeline of `psr-lens run`, the demo and the benchmark."""
