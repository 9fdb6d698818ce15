"""Sources of any size: tar shards, Parquet and JSON lines, read at random through an index, from wherever fsspec reaches.

files.py finds files and reads ranges of them; tar.py and table.py read samples (ranges of bytes,
rows of row groups); corpus.py orders them and joins them to a corpus; schemas.py makes documents.
"""
