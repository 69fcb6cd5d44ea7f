"""ROS 2 nodes of valueguide. Each is parameters, conversion, and calls into the package `valueguide`."""
