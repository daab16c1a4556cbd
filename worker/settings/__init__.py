"""Settings: a TOML file, overridden by ``XNLI_<SECTION>__<KEY>`` variables. The only reader of the environment.

Unknown keys are errors in both places, because a misspelt limit that is silently ignored is worse than no limit.

`root` is the table of all sections: `brokers` (kafka), `topic_names`, `schema_registry`, `checkpoint` (model),
`processing`, `label_set_limits`, `serving` (http) and `observation` (log), each a `section`. `reading` reads them,
`secret_files` those that are files, `findings` says what is wrong with them, and `in_force` shows them.
"""

from worker.settings.brokers import KafkaSettings
from worker.settings.checkpoint import ModelSettings
from worker.settings.label_set_limits import LabelSetSettings
from worker.settings.reading import Source, TraceExport, given, load, traces
from worker.settings.root import PREFIX, Settings
from worker.settings.schema_registry import SchemaRegistrySettings, SubjectStrategy, WireFraming
from worker.settings.section import Section
from worker.settings.serving import HttpSettings

__all__ = [
    "PREFIX",
    "HttpSettings",
    "KafkaSettings",
    "LabelSetSettings",
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
