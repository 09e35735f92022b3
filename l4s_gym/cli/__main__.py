"""`python -m l4s_gym.cli`."""

import sys

from l4s_gym.cli import main

sys.exit(main())
