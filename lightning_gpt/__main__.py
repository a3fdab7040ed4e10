"""`python -m lightning_gpt` is `lightning-gpt`, whatever is on the PATH."""

from lightning_gpt.cli import main

if __name__ == "__main__":
    main()
