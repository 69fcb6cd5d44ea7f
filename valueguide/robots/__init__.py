"""Drivers of real arms, as far as they are not ROS: kinematics, motion, the link to the controller."""
