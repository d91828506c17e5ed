"""MLServer: a custom runtime with typed codecs, as its documentation writes one."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_session import OnnxSession


class Infer(MLModel):
    async def load(self) -> bool:
        self.model = OnnxSession()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {t.name: NumpyCodec.decode_input(t).astype(np.float32, copy=False) for t in payload.inputs}
        outputs = [NumpyCodec.encode_output(key, value) for key, value in self.model.run(inputs).items()]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
