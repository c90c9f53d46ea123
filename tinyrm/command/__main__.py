import sys

from tinyrm.command import main

sys.exit(main())
