"""From tables of predictions to metrics: what they are, their intervals, paired tests, calibration.

Numbers go in and come out; nothing here knows where a table is from or where a metric is shown.
"""
