"""Builds and runs the ROS 2 workspace from Python: `colcon build`, environments, launching. No rclpy here."""
