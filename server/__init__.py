"""The daemon: one organism behind HTTP and WebSocket. Uses only public names of ``organism``."""
