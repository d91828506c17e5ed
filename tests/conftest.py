"""What every test may rely on: both clients of the inference protocol can be imported in one process."""

import importlib
from unittest import mock

from google.protobuf import descriptor_pool

# tritonclient and kserve both define the package "inference" in protobuf's default pool, which then refuses the
# one that is imported second. Here tritonclient's definitions go to a pool of their own; the client is unchanged.
with mock.patch.object(descriptor_pool, "Default", return_value=descriptor_pool.DescriptorPool()):
    importlib.import_module("tritonclient.grpc")
