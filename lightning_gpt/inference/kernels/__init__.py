"""A GPT's forward pass in C++, for processors: compiled on the machine where it runs.

matmul.h has the products, attention.h the attention to paged blocks, network.cpp puts them together; library.py
compiles and loads them. inference/native_runner.py is their user and TorchRunner their readable twin.
"""
