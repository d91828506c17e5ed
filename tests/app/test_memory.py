"""What a server costs before it is asked for anything."""

import subprocess
import sys


def test_a_server_without_batches_loads_no_tables():
    asked = "import sys, foretell.app.service; print(sorted({'pyarrow', 'pandas', 'ray'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
