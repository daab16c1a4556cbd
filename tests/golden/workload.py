"""Requests that the golden suites share: fifteen languages, one to twelve labels, templates, long texts, all tasks."""

from __future__ import annotations

from tests import builders
from worker.messages import Pooling, Request

TEXTS = {
    "ar": "وصل الطرد متأخرا يومين وكان الصندوق تالفا.",
    "bg": "Пратката пристигна с два дни закъснение.",
    "de": "Das Paket kam zwei Tage zu spät an und der Karton war beschädigt.",
    "el": "Το δέμα έφτασε με δύο μέρες καθυστέρηση.",
    "en": "The parcel arrived two days late and the box was damaged.",
    "es": "El paquete llegó dos días tarde y la caja estaba dañada.",
    "fr": "Le colis est arrivé avec deux jours de retard.",
    "hi": "पार्सल दो दिन देर से पहुँचा।",
    "ru": "Посылка пришла на два дня позже, коробка помята.",
    "sw": "Kifurushi kilifika siku mbili baadaye.",
    "th": "พัสดุมาถึงช้าไปสองวัน",
    "tr": "Paket iki gün geç geldi ve kutu hasarlıydı.",
    "ur": "پارسل دو دن دیر سے پہنچا۔",
    "vi": "Bưu kiện đến muộn hai ngày.",
    "zh": "包裹晚到了两天，盒子也坏了。",
}
LABELS = (
    "shipping",
    "billing",
    "Technik",
    "musique",
    "погода",
    "sport",
    "política",
    "旅行",
    "health and fitness",
    "cars",
    "école",
    "food",
)
TEMPLATES = ("This example is {}.", "In diesem Text geht es um {}.", "{}")


def classify(text: str, labels: tuple[str, ...], *, template: str = TEMPLATES[0], multi_label: bool = False) -> Request:
    return builders.classify(text, *labels, template=template, multi_label=multi_label, language="en")


def embed(text: str, pooling: Pooling, *, normalize: bool = False) -> Request:
    return builders.embed(text, pooling=pooling, normalize=normalize, language="en")


def entail(text: str, *hypotheses: str) -> Request:
    return builders.entail(text, *hypotheses, language="en")


# Label counts 1 to 12 and on, single and multi-label, three templates, fifteen languages.
CLASSIFICATIONS = [
    (
        classify(text, tuple(LABELS[(i + k) % 12] for k in range(i % 12 + 1)), template=template, multi_label=multi),
        template,
    )
    for i, text in enumerate(TEXTS.values())
    for template, multi in [(TEMPLATES[i % 3], i % 2 == 1)]
]
LONG = " ".join(TEXTS.values()) + " " + " ".join(f"Sentence number {i} is about delivery." for i in range(150))
