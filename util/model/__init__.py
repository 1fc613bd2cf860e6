"""What is done with a backbone beyond its forward pass: adapters, learning rates, precision, memory, probes,
heat maps.

The table of backbones itself is models_vit.py.
"""
