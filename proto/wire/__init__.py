"""The private contract: structs that two of Pagewire's processes must agree on, and their codec.

It knows neither transports (no zmq, no grpc) nor tensors (no torch). Every message is a frozen struct with a
typed decoder built once; nothing on a wire can name code to run. New fields go last and have defaults.

- `columns`: packed integer columns
- `codec`: bounded, typed encoding and decoding, the one door for bytes that somebody else made; which numbers and texts
  messages may hold
- `plan`: engine → worker step plans, worker → engine step results
- `requests`: frontend ↔ engine
- `control`: supervisor ↔ its children; `lifeline`: a child's end of that channel
- `model`: what a model is, as the supervisor read it from its files
- `tensors`: which tensors a decoder needs; `gguf_header` and `gguf_tensors`, `safetensors_header`: the formats that
  supervisor and workers both read
- `launch`: what a worker is started with
"""
