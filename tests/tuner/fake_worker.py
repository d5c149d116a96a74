"""A measuring worker on a fake device; run by path, with a script's path and the socket's descriptor."""

import sys
from functools import partial
from pathlib import Path

from attnforge.compilation import serve
from attnforge.tuner.device import answer

sys.path.insert(0, str(Path(__file__).parents[2]))  # run by path

from tests.tuner.fake_device import FakeDevice, Script

if __name__ == "__main__":
    serve(int(sys.argv[2]), partial(answer, FakeDevice(Script.read(sys.argv[1]))))
