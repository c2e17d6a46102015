"""Data: records of text from files and tasks, their tokens, and batches that resume exactly.

A source is a sequence of records, an encoder turns one into tokens, a `Loader` shuffles, packs and
batches them:

    source = jsonl.JsonLines("train.jsonl")
    encoder = tokens.encoder(source.schema, tokens.completion(encode, end=[eos_id]))
    batches = loader.Loader(source, loader.Config(batch_size=8, length=1024), encoder)
"""
