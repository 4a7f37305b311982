"""A PyTorch training framework: one Runner over independent layers."""
