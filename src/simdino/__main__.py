"""python -m simdino, the form that torchrun starts."""

from simdino.cli import main

if __name__ == "__main__":
    main()
