"""The link between a robot and a server of models: wire format, keys, clocks, the robot's side. No torch."""
