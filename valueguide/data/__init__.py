"""Episodes on disk: recorded as LeRobotDataset v3, read back fast, and served as chunk transitions."""
