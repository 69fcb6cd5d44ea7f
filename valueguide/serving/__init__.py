"""The server of models for several robots: sessions, fair batches, the engine, health and metrics."""
