"""IoU, calibration, agreement; what takes all roles to see."""
