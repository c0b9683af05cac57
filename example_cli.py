"""Talk to the model in a terminal: the same as `chatbaker chat`, with the same options (--help)."""

import sys

from chatbaker.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "chat")
    main()
