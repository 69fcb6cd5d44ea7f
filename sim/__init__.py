"""The MuJoCo tabletop that stands in for a robot: scene, tasks, experts, gymnasium environments.

A WidowX AI arm on a table with nine language tasks, two cameras, contact forces and seeded,
bitwise reproducible episodes. Start at `sim.suite.make_suite`.
"""

import os

# MuJoCo picks its OpenGL library when it is first imported, so this must come before any import of it.
os.environ.setdefault("MUJOCO_GL", "egl")
# One rasteriser thread is as fast at these image sizes and leaves a core for the policy.
os.environ.setdefault("LP_NUM_THREADS", "1")
