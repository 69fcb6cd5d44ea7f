"""A small vision-language model of progress: built and trained on the simulator, asked like any other."""
