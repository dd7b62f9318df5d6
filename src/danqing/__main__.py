"""`python -m danqing`, which `accelerate launch -m danqing train ...` needs."""

from danqing.cli import main

if __name__ == "__main__":
    main()
