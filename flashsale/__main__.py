"""`python -m flashsale`: how the supervisor starts its parts, whatever the command is called on this machine."""

from flashsale.cli import main

if __name__ == "__main__":
    main()
