"""A corpus read document by document, as the training stream does it, with its rejects counted."""

from tunalab.data.documents import Corpus, Document, Reject
from tunalab.data.rejects import RejectLog


def read(corpus: Corpus, index: int, log: RejectLog) -> Document | None:
    """Document ``index`` of ``corpus``, counted in ``log`` under the corpus' name and length; None if it was rejected.

    Raises:
        UserError: too many documents of this corpus were rejected.
    """
    log.lengths[corpus.name] = corpus.length
    try:
        document = corpus.document(index)
    except Reject as reject:
        log.reject(corpus.name, index, str(reject))
        return None
    log.accept(corpus.name)
    return document
