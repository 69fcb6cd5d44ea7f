"""Files that people write: their schema, and loading with errors that name file and field."""
