import sys

from tinyrm.command import main

if __name__ == "__main__":
    sys.exit(main())
