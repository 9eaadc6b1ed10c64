"""The input: data sets, views, order, and the decoders that turn them into batches."""
