"""An open-loop load generator for servers that speak OpenAI's API.

Requests are sent when they are due, whatever has become of those before, and latencies run from the moment a request
was due: a server that stalls shows in every request of the stall, which a loop that waits for its answers would hide
(coordinated omission). Neither torch nor anything of the service is imported here, so the generator can judge any
server.
"""
