"""`python -m lgpl`: the command, where its script is not on the path."""

from lgpl.cli import main

if __name__ == "__main__":
    main()
