"""What the programs are made of. They need a POSIX system: locks, signals and memory maps of files that other
starts read."""

import os
import sys

# read where torch is imported: a store that ended with its machine would fill the screen with warnings of
# torch's
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

if sys.platform == "win32":
    print("error: this program runs on Linux and macOS; on Windows, start it inside WSL (see "
          "README.md)", file=sys.stderr)
    raise SystemExit(2)
