"""What may reach the motors: limits, staleness, and a latched stop. Pure: no ROS, no clock."""
