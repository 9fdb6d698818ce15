"""`tunalab export`: the model of a run as a folder that stands alone."""

from dataclasses import asdict
from pathlib import Path

from tunalab.exporting.assembly import learnt_state, stored_once
from tunalab.exporting.folder import About, write_export
from tunalab.exporting.loading import load_run
from tunalab.exporting.parts import write_parts
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.frontends.origin import frozen_origin


def export_run(run_dir: Path, folder: Path, raw: bool = False) -> None:
    """Write the model of a run, at its newest undamaged checkpoint, into ``folder``, which must not exist.

    Averaged weights, or with ``raw`` those that go on training. The folder is whole or not there, and needs nothing else:
    tokenizer and frozen parts are copied into it. Raises UserError as :func:`load_run`, and when ``folder`` is there.
    """
    loaded = load_run(run_dir, raw=raw)
    config, model = loaded.config, loaded.model
    settings = ComponentSettings.seeded(config.components_seed)
    about = About(
        origin=loaded.origin,
        vocabulary=model.decoder.config.vocab_size,
        components=asdict(settings),
        frozen=frozen_origin(config, settings, model.frontend),
        initialised=[],
    )
    write_export(
        folder,
        about,
        config,
        stored_once(config, learnt_state(model)),
        loaded.tokenizer,
        lambda fresh: write_parts(fresh, config, model.frontend),
    )
