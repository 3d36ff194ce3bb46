"""The compiler: a SageMaker Neo job document and an ONNX model in, a Neo artifact for DLR out.

Nothing heavy is imported here: TVM, onnx and onnxruntime come in when a job is compiled.
"""
