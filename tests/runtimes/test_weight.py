"""What loading costs a process: no model library before a package asks for one, little memory for a tiny model."""

import subprocess
import sys

from zoo import onnx_kind

LIBRARIES = "{'onnxruntime', 'torch', 'sklearn', 'xgboost', 'lightgbm', 'tokenizers', 'PIL'}"


def run(code, *arguments):
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_importing_the_runtimes_loads_no_model_library():
    assert run(f"import sys, foretell.runtimes; print(sorted({LIBRARIES} & set(sys.modules)))") == "[]"


def test_an_onnx_package_without_transforms_loads_onnxruntime_alone_and_stays_below_150_mb(tmp_path):
    onnx_kind(tmp_path)
    code = f"""
import sys, psutil
import numpy as np
from foretell.core.settings import ReplicaSettings
from foretell.runtimes import load
from foretell.store.package import Package
predictor = load(Package.open(sys.argv[1]), ReplicaSettings(threads=2))
for _ in range(100):
    predictor.predict({{"X": np.zeros((64, 4), np.float32)}})
print(sorted({LIBRARIES} & set(sys.modules)), psutil.Process().memory_info().rss < 150 * 2**20)
"""
    assert run(code, str(tmp_path)) == "['onnxruntime'] True"
