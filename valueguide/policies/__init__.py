"""Policies: any LeRobot policy behind one interface, K candidates from one prefix, training of the base."""
