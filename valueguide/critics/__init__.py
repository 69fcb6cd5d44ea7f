"""Critics that score action chunks: networks, V-GPS objectives (Cal-QL, IQL), training, checkpoints."""
