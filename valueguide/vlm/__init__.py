"""A small vision-language model of progress for the simulator: built here, trained here, asked like any other."""
