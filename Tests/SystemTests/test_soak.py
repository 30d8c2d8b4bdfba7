# SPDX-License-Identifier: Apache-2.0
"""A short soak, so that the long one works when it is wanted (`make soak`)."""

import os
import subprocess
import sys
import unittest

SECONDS = 24


class Soak(unittest.TestCase):
    exclusive = True  # of the sysctl
    limit = 300

    def test_everything_at_once(self):
        if os.geteuid() != 0:
            self.skipTest("needs root")
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "soak.py")
        done = subprocess.run(
            ["setpriv", "--pdeathsig", "TERM", sys.executable, program, "--alone",
             "--seconds", str(SECONDS)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, check=False)
        output = done.stdout.decode(errors="replace")
        self.assertEqual(done.returncode, 0, output[-8000:])
        print(output.splitlines()[-1], flush=True)
