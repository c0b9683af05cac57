"""`python -m chatbaker` is `chatbaker`."""

from chatbaker.cli import main

if __name__ == "__main__":  # worker processes import this module again
    main()
