"""What a training run will take - parameters, tokens, memory, time, money - before it is started."""
