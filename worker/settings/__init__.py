"""Settings: a TOML file, overridden by ``XNLI_<SECTION>__<KEY>`` variables. The only reader of the environment.

Unknown keys are errors in both places, because a misspelt limit that is silently ignored is worse than no limit.

`root` is the table of all sections: `brokers` (kafka), `topic_names`, `schema_registry`, `checkpoint` (model),
`processing` and `observation`, each a `section`. `reading` reads them, `secret_files` those that are files, and
`findings` says what is wrong with them.
"""

from worker.settings.brokers import KafkaSettings
from worker.settings.checkpoint import ModelSettings
from worker.settings.reading import Source, TraceExport, given, load, traces
from worker.settings.root import PREFIX, Settings
from worker.settings.schema_registry import SchemaRegistrySettings, SubjectStrategy, WireFraming
from worker.settings.section import Section

__all__ = [
    "PREFIX",
    "KafkaSettings",
    "ModelSettings",
    "SchemaRegistrySettings",
    "Section",
    "Settings",
    "Source",
    "SubjectStrategy",
    "TraceExport",
    "WireFraming",
    "given",
    "load",
    "traces",
]
