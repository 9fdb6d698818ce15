"""Sources of any size: tar shards, Parquet and JSON lines, read at random through an index, from wherever fsspec reaches.

files.py finds files and reads ranges; index_cache.py keeps where samples start; ranges.py and table.py are the two ways to a sample
(a range of bytes, a row of a row group); order.py shuffles without losing the neighbourhood; corpus.py joins them to a corpus. Then
a file for each schema: webdataset.py, finevision.py, omniedit.py, text.py.
"""
