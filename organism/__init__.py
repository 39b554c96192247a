"""The science of a meta-learned plasticity rule, from encoder to evaluation.

Never imports ``server``. Every module may import only what stands above it in
``tests/test_layers.py``.
"""
