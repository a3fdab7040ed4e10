"""The HTTP service: a gateway that admits, protects and observes, and engine workers behind it.

The gateway is one process that runs an event loop and never touches a tensor; every replica of a model is a worker
process of its own, in which one thread steps the engine. They talk over socket pairs (messages.py).
"""
