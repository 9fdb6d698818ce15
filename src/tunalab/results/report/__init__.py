"""One page about a folder of records: what was asked, whether it is equal, what came out, at what cost, by which commands.

A report is a list of sections of Markdown, made from records alone; pictures and samples stand beside the text. The Markdown
file is the sections' text, the page the same text as HTML with everything inside one file.
"""
