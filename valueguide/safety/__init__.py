"""What may reach the motors: limits, staleness, and a latched stop. Pure functions and state, no ROS, no clock."""
