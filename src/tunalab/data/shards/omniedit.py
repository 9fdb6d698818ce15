"""OmniEdit's schema: ``src_img``, ``edited_img`` and ``edited_prompt_list``, several wordings of one instruction."""

from tunalab.config import OmniEditConfig
from tunalab.data.assembling import edit_document
from tunalab.data.documents import Document, Reject
from tunalab.data.shards.corpus import Sample, ShardedCorpus, Visit
from tunalab.data.shards.files import find_files
from tunalab.data.shards.finevision import pixels
from tunalab.data.shards.schema import IMAGE, TEXTS
from tunalab.data.shards.table import TableReader
from tunalab.data.shards.webdataset import Decode


def open_omniedit(name: str, config: OmniEditConfig, decode: Decode, seed: int) -> ShardedCorpus:
    """Edits; each epoch takes the next wording of an instruction.

    Raises:
        UserError: a file is missing, damaged or lacks a column.
    """

    def make(row: Sample, visit: Visit) -> Document:
        wordings = row["edited_prompt_list"]
        if not wordings:
            raise Reject("edited_prompt_list is empty")
        source, edited = (pixels(row[key], key, decode) for key in ("src_img", "edited_img"))
        return edit_document(wordings[visit.choose(len(wordings))], source, edited)

    columns = {"src_img": IMAGE, "edited_img": IMAGE, "edited_prompt_list": TEXTS}
    reader = TableReader(name, find_files(config.urls, name), columns, kept=config.window)
    return ShardedCorpus(name, reader, make, config, seed)
