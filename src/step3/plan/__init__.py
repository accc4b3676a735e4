"""What decoding costs, and which deployment is cheapest. Needs neither torch nor any other room."""
