"""`python -m chatbaker` is `chatbaker`."""

from chatbaker.cli import main

main()
