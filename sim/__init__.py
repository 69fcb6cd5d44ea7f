"""The MuJoCo tabletop that stands in for a robot: scene, tasks, experts, gymnasium environments.

A WidowX AI arm on a table with nine language tasks, two cameras, contact forces and seeded,
bitwise reproducible episodes. Start at `sim.suite.make_suite`.
"""
