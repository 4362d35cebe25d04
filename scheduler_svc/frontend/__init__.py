"""A frontend process: gRPC, validation, tokenizer, text. It knows neither scheduling nor the model."""
